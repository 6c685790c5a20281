from __future__ import annotations

from pathlib import Path

import pytest
from penstock.pipeline.compiler import load

GRAPHS = sorted((Path(__file__).parents[1] / "deploy" / "graphs").glob("*.yaml"))


@pytest.mark.parametrize("path", GRAPHS, ids=lambda p: p.stem)
def test_embedded_graphs_compile(path: Path) -> None:
    plan = load(path)
    assert plan.name == path.stem
    assert plan.about
