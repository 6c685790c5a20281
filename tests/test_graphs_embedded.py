from __future__ import annotations

from pathlib import Path

import pytest
from penstock.pipeline.compiler import load
from penstock.transport.live_session import words_of

GRAPHS = sorted((Path(__file__).parents[1] / "deploy" / "graphs").glob("*.yaml"))


@pytest.mark.parametrize("path", GRAPHS, ids=lambda p: p.stem)
def test_embedded_graphs_compile(path: Path) -> None:
    plan = load(path)
    assert plan.name == path.stem
    assert plan.about


def test_graphs_say_what_words_they_read_and_give() -> None:
    words = {path.stem: words_of(load(path)) for path in GRAPHS}
    assert {name for name, w in words.items() if w.reads} == set(words) - {"captions"}
    assert {name for name, w in words.items() if w.captions} == {"studio", "voice", "captions"}
    assert {name for name, w in words.items() if not w.gives} == {"restyle"}
