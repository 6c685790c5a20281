from __future__ import annotations

import pytest
from graphs import compile_test, run_session, sink_of
from penstock.pipeline.clock import MS
from penstock.pipeline.errors import GraphError
from penstock.pipeline.filters import Filters, parse_filters
from penstock.pipeline.frame import AudioFrame, TokenFrame
from penstock.pipeline.virtual_loop import run_virtual

TWO = """
penstock: 1
graph: two
nodes:
  mic:  {use: test.audio, frames: 50}
  work: {use: test.work, in: mic.audio, takes_ms: 5}
  tok:  {use: test.tokens, frames: 10, every_ms: 100}
  out:  {use: test.sink, in: {audio: work.audio, text: "tok.text%s"}%s}
"""


def test_filters_are_read_or_refused_in_words() -> None:
    assert parse_filters(["every(100ms)", "hold(3s)"]) == Filters(thin=100 * MS, hold=3000 * MS)
    assert parse_filters(["delay(match overlay)"]) == Filters(match="overlay")
    for bad, said in [
        (["every(soon)"], "'soon' is not a duration"),
        (["evry(1s)"], "unknown filter 'evry"),
        (["every(1s)", "every(2s)"], "every is given twice"),
        (["delay(1s)", "delay(match a)"], "delay is given twice"),
    ]:
        with pytest.raises(ValueError, match=said.replace("(", r"\(")):
            parse_filters(bad)


def test_delay_holds_frames_back_by_so_much() -> None:
    session = run_virtual(run_session(compile_test(TWO % ("|delay(80ms)", ""))))
    waits = [at - f.pts for at, _, f in sink_of(session).got if isinstance(f, TokenFrame)]
    assert len(waits) == 10
    assert all(80 * MS <= w <= 81 * MS for w in waits[:-1])
    edge = session.runners["out"].inputs[1]
    assert edge.puts == 10 == edge.delivered


def test_delay_match_makes_one_input_as_late_as_another() -> None:
    text = (TWO % ("|delay(match work)", "")).replace("takes_ms: 5", "takes_ms: 15")
    session = run_virtual(run_session(compile_test(text)))
    got = sink_of(session).got
    picture = [at - f.pts for at, _, f in got if isinstance(f, AudioFrame)]
    words = [at - f.pts for at, _, f in got if isinstance(f, TokenFrame)]
    assert picture[20] == 15 * MS
    assert all(14 * MS <= w <= 16 * MS for w in words[2:-1])


def test_hold_lets_old_state_die() -> None:
    text = (TWO % ("|hold(30ms)", "")).replace(
        "out:  {use: test.sink,", "out:  {use: test.sink, takes_ms: 50,"
    )
    session = run_virtual(run_session(compile_test(text)))
    edge = session.runners["out"].inputs[1]
    assert edge.lost["late"] > 0
    got = [(at, f) for at, _, f in sink_of(session).got if isinstance(f, TokenFrame)]
    assert all(at - f.pts <= 30 * MS for at, f in got)


def test_a_driver_sets_the_pace() -> None:
    session = run_virtual(run_session(compile_test(TWO % ("", ", sync: {driver: audio}"))))
    pts = [f.pts for _, _, f in sink_of(session).got]
    assert pts == sorted(pts)
    assert len(pts) == 60


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("", ", sync: {driver: video}", "no connected input port 'video'; accepted: audio, text"),
        ("", ", sync: {drive: audio}", "'sync' has no key 'drive'; did you mean 'driver'?"),
        ("|delay(match cam)", "", "delay(match cam): not an input here; accepted: tok, work"),
    ],
)
def test_faults_of_joins(old: str, new: str, said: str) -> None:
    with pytest.raises(GraphError) as caught:
        compile_test(TWO % (old, new))
    assert said in str(caught.value)
