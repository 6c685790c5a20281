from __future__ import annotations

import pytest
from graphs import compile_test
from penstock.pipeline.clock import MS
from penstock.pipeline.errors import GraphError
from penstock.pipeline.explain import explain, paths, verdicts

GRAPH = """
penstock: 1
graph: g
slo: {barge_in_to_silence: 100ms}
nodes:
  mic:  {use: test.audio}
  a:    {use: test.work, in: mic.audio, budget: 10ms}
  b:    {use: test.work, in: a.audio, budget: 20ms, queue: {max: 1, full: latest}}
  out:  {use: test.sink, in: {audio: "b.audio|delay(5ms)"}}
"""


def test_worst_case_adds_queues_delays_and_budgets() -> None:
    (path,) = paths(compile_test(GRAPH))
    assert path.nodes == ("mic", "a", "b", "out")
    assert path.worst == (40 + 10 + 20 + 20 + 40 + 5) * MS
    assert path.unknown == ()


def test_a_path_with_an_undeclared_budget_says_so() -> None:
    (path,) = paths(compile_test(GRAPH.replace(", budget: 10ms", "")))
    assert path.unknown == ("a",)
    assert "no budget declared: a" in explain(compile_test(GRAPH.replace(", budget: 10ms", "")))


def test_a_graph_without_a_way_through_says_so() -> None:
    speech = GRAPH.replace("slo: {barge_in_to_silence: 100ms}\n", "").split("  mic:")[0]
    speech += "  words: {use: test.tokens}\n  voice: {use: test.speaker, in: words.text}\n"
    speech += "  out: {use: test.sink, in: {audio: voice.audio}}\n"
    assert "nothing to add up" in explain(compile_test(speech))
    assert "no bound   words → voice → out" in explain(compile_test(speech))
    assert "no bound" not in explain(compile_test(GRAPH))
    assert "nothing to add up" not in explain(compile_test(GRAPH))


def test_a_promise_that_the_graph_cannot_keep_is_a_fault() -> None:
    text = GRAPH.replace("test.work, in: mic.audio", "test.work, in: mic.audio, scope: reply")
    text += "cancel: {reply: {on: mic.alarm, within: %s}}\n"
    assert [v.kept for v in verdicts(compile_test(text % "100ms"))] == [True]
    with pytest.raises(GraphError, match="4:7: the graph can take 120 ms at worst"):
        compile_test(text % "120ms")
