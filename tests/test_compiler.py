from __future__ import annotations

import pytest
from graphs import compile_test
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.pipeline.clock import MS
from penstock.pipeline.errors import GraphError
from penstock.pipeline.faults import first_in_words
from pydantic import BaseModel, Field, ValidationError

GOOD = """penstock: 1
graph: good
slo: {caption: 300ms}
queues: {live: {max: 60ms, full: drop_oldest}}
nodes:
  mic:  {use: test.audio, frames: 5}
  tok:  {use: test.tokens}
  work: {use: test.work, in: mic, budget: 5ms, params: {gain: 2}}
  out:  {use: test.sink, in: {audio: work.audio|every(100ms), text: [tok.text]}, queue: {max: 3f, full: latest}}
"""


def faults(text: str) -> list[str]:
    with pytest.raises(GraphError) as caught:
        compile_test(text)
    return str(caught.value).splitlines()


def test_a_good_graph_compiles() -> None:
    plan = compile_test(GOOD)
    assert list(plan.nodes)[-1] == "out"
    out = plan.nodes["out"].inputs
    assert (out[0].source, out[0].port, out[0].filters.thin, out[0].bound.full) == (
        "work.audio",
        "audio",
        100 * MS,
        "latest",
    )
    assert plan.nodes["work"].inputs[0].bound.span == 60 * MS
    assert plan.nodes["work"].params.model_dump() == {"gain": 2.0, "mode": "plain"}
    assert plan.slo == {"caption": 300 * MS}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("use: test.work,", "use: test.wrk,", "8:10: unknown stage 'test.wrk'"),
        ("in: mic,", "in: mike,", "8:26: unknown node 'mike'; accepted: mic, out, tok, work"),
        ("in: mic,", "in: mic.video,", "8:26: node 'mic' has no output port 'video'; accepted: audio"),
        ("in: mic,", "in: tok.text,", "tok.text carries text, but 'work' takes audio: audio"),
        ("in: mic,", "in: work.audio,", "nodes feed each other in a circle: work -> work"),
        ("in: mic, ", "", "8:3: input port work.audio (audio) is not connected"),
        (
            "gain: 2",
            "gain: 9",
            "8:57: 'params' of stage 'test.work': gain: it must be at most 4",
        ),
        ("gain: 2", "gian: 2", "has no key 'gian'; did you mean 'gain'?"),
        (
            "frames: 5",
            "frames: many",
            "6:27: stage 'test.audio': frames: a whole number is expected (got 'many')",
        ),
        ("frames: 5", "frame: 5", "has no key 'frame'; did you mean 'frames'?"),
        ("budget: 5ms", "budget: 5", "8:35: budget: 5 is not a duration; write a number and a unit"),
        (
            "every(100ms)",
            "some(100ms)",
            "unknown filter 'some(100ms)'; accepted: every(500ms), hold(3s), delay(80ms), delay(match NODE)",
        ),
        ("max: 60ms", "max: lots", "4:17: 'lots' is no queue size; write 40ms, 8f (frames), 256 or 4MiB"),
        (
            "full: drop_oldest",
            "full: drop",
            "4:28: unknown policy 'drop'; accepted: drop_oldest, block, latest",
        ),
        ("caption:", "captoin:", "3:7: 'slo' has no key 'captoin'; did you mean 'caption'?"),
        ("penstock: 1", "penstock: 2", "1:1: 'penstock: 1' must say the file's version; got 2"),
        ("graph: good", "graph: Good!", "2:1: 'graph' names it in lower case"),
        ("  tok:", "  mic:", "7:3: 'mic' is given twice"),
        ("nodes:", "nodes: [", "not YAML"),
        ("use: test.tokens", "use: test.tokens, in: mic.audio", "node 'tok' is a source: it has no inputs"),
        ("[tok.text]", "[]", "7:3: nothing reads the outputs of 'tok'; connect or remove it"),
        ("text: [tok.text]", "txt: [tok.text]", "node 'out' has no input port 'txt'; did you mean 'text'?"),
        ("caption: 300ms", "caption: &a 300ms, x: *a", "aliases (*name) are not accepted"),
    ],
)
def test_a_fault_names_place_value_and_what_is_accepted(old: str, new: str, said: str) -> None:
    assert old in GOOD
    told = faults(GOOD.replace(old, new, 1))
    assert any(said in line for line in told), told
    assert all(line.startswith("test.yaml:") for line in told)


def test_all_faults_are_told_at_once() -> None:
    told = faults(GOOD.replace("in: mic,", "in: mike,").replace("frames: 5", "frames: many"))
    assert len(told) == 2
    assert faults("penstock: 1\ngraph: g\nnodes: 5\n") == ["test.yaml:3:1: 'nodes' must be a mapping, not 5"]
    assert "'nodes' is missing or empty" in faults("penstock: 1\ngraph: g\n")[0]
    told = faults(GOOD.replace("  tok:", "  mic:", 1).replace("frames: 5", "frames: many"))
    assert "many" in told[0]
    assert "'mic' is given twice" in told[1]


def test_depth_is_refused_where_it_is_passed_before_anything_is_built() -> None:
    deep = "nodes: {a: " + "[" * 20_000
    assert faults(deep) == [
        "test.yaml:1:23: nested too deep; at most 12 levels"
    ]  # the 12th bracket: the 14th level
    assert "nested" not in faults("nodes: {a: " + "[" * 11 + "]" * 11 + "}")[0]


def test_cancel_on_is_a_word_not_a_boolean() -> None:
    text = (
        GOOD.replace("in: mic,", "in: mic, scope: reply,")
        + "cancel: {reply: {on: tok.alarm, within: 60ms}}\n"
    )
    rule = compile_test(text).cancel[0]
    assert (rule.scope, rule.node, rule.event, rule.within) == ("reply", "tok", "alarm", 60 * MS)
    assert (
        "no node has the scope 'replay'; did you mean 'reply'?"
        in faults(text.replace("{reply: {on", "{replay: {on"))[0]
    )


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, len(GOOD)), st.sampled_from(list("{}[]:,|\n\t \"'*&!%@#-0a") + ["\x00", "é"])
        ),
        min_size=1,
        max_size=6,
    )
)
def test_no_text_makes_the_compiler_fail_otherwise(edits: list[tuple[int, str]]) -> None:
    text = GOOD
    for at, char in edits:
        text = text[:at] + char + text[at + 1 :]
    try:
        compile_test(text)
    except GraphError as e:
        assert e.faults


def test_what_is_no_number_is_not_told_its_bounds() -> None:
    class Model(BaseModel):
        rate: float = Field(le=2)

    with pytest.raises(ValidationError) as caught:
        Model.model_validate({"rate": "NaN"})
    assert first_in_words(caught.value) == "rate: a finite number is expected (got 'NaN')"
