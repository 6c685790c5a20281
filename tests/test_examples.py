"""The graphs that the documentation shows are accepted as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from penstock.pipeline.compiler import load

EXAMPLES = sorted((Path(__file__).parents[1] / "docs" / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_compiles(path: Path) -> None:
    assert load(path).name == path.stem
