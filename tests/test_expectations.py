"""`penstock test`: what its files may say, how a run compares, and an embedded graph that passes its own."""

from __future__ import annotations

import asyncio
from pathlib import Path

import jiwer
import pytest
from graphs import compile_test
from hypothesis import given
from hypothesis import strategies as st
from penstock.pipeline import library
from penstock.pipeline.case_run import Outcome, cases_beside, run_case
from penstock.pipeline.clock import LoopClock, MonotonicClock
from penstock.pipeline.compiler import load
from penstock.pipeline.errors import GraphError
from penstock.pipeline.expectations import read_cases, word_error_rate
from penstock.pipeline.graph import Plan
from penstock.pipeline.stage import StageError
from penstock.pipeline.virtual_loop import run_virtual

GRAPH = """
penstock: 1
graph: counts
nodes:
  src:   {use: test.tokens, frames: 12}
  alarm: {use: test.alarm, in: src.text}
  work:  {use: test.work, in: mic.audio, fail_at: %d}
  mic:   {use: test.audio, frames: 30}
  out:   {use: test.sink, in: {audio: work.audio, text: [src.text, alarm.event]}}
"""
WORDS = "0 1 2 3 4 5 6 7 8 9 10 11"


def plan(fail_at: int = -1) -> Plan:
    return compile_test(GRAPH % fail_at)


def outcome_of(tmp_path: Path, body: str, fail_at: int = -1) -> Outcome:
    path = tmp_path / "counts.test.yaml"
    path.write_text(f"penstock_test: 1\ncases:\n  one:\n    expect: {body}\n")

    async def main() -> Outcome:
        (case,) = read_cases(path, plan())
        return await run_case(plan(fail_at), case, LoopClock(asyncio.get_running_loop()))

    return run_virtual(main())


@pytest.mark.parametrize(
    "body",
    [
        f"{{src.text: '{WORDS}'}}",
        "{src.text: {words: 0 1 2 3 4 5 6 7 8 9 10 twelve, wer: 0.1}}",
        "{src.text: {contains: [3 4, '11'], lacks: '12', matches: '^0 .* 11 $'}}",
        "{alarm.alarm: 1, alarm.event: {min: 1, max: 1}}",
        "{alarm.alarm: {at: [180ms], within: 20ms}}",
        "{work.audio: {min: 30, max: 30}, mic.audio: 30}",
    ],
)
def test_what_is_as_expected_passes(tmp_path: Path, body: str) -> None:
    assert outcome_of(tmp_path, body).differences == ()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("{src.text: '0 1 2'}", "src.text: word error rate 3.00, expected at most 0.00"),
        ("{src.text: {contains: hello}}", "lacks 'hello'; it is '0 1"),
        ("{src.text: {lacks: 3 4}}", "has '3 4'"),
        ("{src.text: {matches: 'x+'}}", "does not match 'x+'"),
        ("{alarm.alarm: 2}", "alarm.alarm: 1 events, expected exactly 2"),
        ("{alarm.alarm: {at: [1s]}}", "  - expected at 1.00 s ± 0.1"),
        ("{work.audio: {min: 31}}", "work.audio: 30 frames, expected at least 31"),
        ("{work.audio: {max: 3}}", "work.audio: 30 frames, expected at most 3"),
        ("{alarm.silence: {min: 1}}", "alarm.silence: 0 events, expected at least 1"),
    ],
)
def test_what_differs_is_told(tmp_path: Path, body: str, said: str) -> None:
    assert any(said in line for line in outcome_of(tmp_path, body).differences)


def test_a_stage_that_fails_fails_its_case(tmp_path: Path) -> None:
    outcome = outcome_of(tmp_path, "{src.text: {contains: '11'}}", fail_at=7)
    assert any(line.startswith("work: told to fail (") for line in outcome.differences)


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("penstock_test: 2\ncases: {a: {slo: true}}", ["1:1: a test file starts with"]),
        ("penstock_test: 1\ncases: {}", ["names no case"]),
        ("penstock_test: 1\ncases: {a: {}}", ["case 'a' expects nothing"]),
        (
            "penstock_test: 1\ncases:\n  a: {im: x}\n  b: {expect: {srk.text: hi}}\n  c: {params: {nobody: {}}}",
            [
                "3:7: case 'a' has no key 'im'; accepted: in, params",
                "4:16: 'srk.text' is no node.port",
                "nobody",
            ],
        ),
        (
            "penstock_test: 1\ncases: {a: {expect: {src.text: {wer: 3}}}}",
            ["wer: it must be at most 1 (got 3)"],
        ),
        ("penstock_test: 1\ncases: {a: {expect: {src.text: {matches: '('}}}}", ["not a regular expression"]),
        ("penstock_test: 1\ncases: {a: {expect: {mic.audio: {at: [1s]}}}}", ["'at' is for events"]),
        ("penstock_test: 1\ncases: {a: {expect: {alarm.alarm: {at: [1q]}}}}", ["1q"]),
    ],
)
def test_faults_are_told_all_at_once_with_their_places(tmp_path: Path, text: str, faults: list[str]) -> None:
    path = tmp_path / "x.test.yaml"
    path.write_text(text)
    with pytest.raises(GraphError) as e:
        read_cases(path, plan())
    for fault in faults:
        assert fault in str(e.value)


@given(
    st.lists(st.sampled_from("abcd"), min_size=1, max_size=8), st.lists(st.sampled_from("abcd"), max_size=8)
)
def test_the_word_error_rate_is_the_usual_one(wanted: list[str], got: list[str]) -> None:
    assert word_error_rate(wanted, got) == pytest.approx(jiwer.wer(" ".join(wanted), " ".join(got)))


def test_a_graph_without_tests_says_where_they_would_be(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"write mine\.test\.yaml beside it"):
        cases_beside(tmp_path / "mine.yaml")


def test_tests_in_the_service_folder_are_no_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mine.yaml", "mine.test.yaml"):
        (tmp_path / name).write_text("")
    monkeypatch.setenv("CONFIGURATION_DIRECTORY", str(tmp_path))
    assert [Path(p).name for p in library.configured()] == ["mine.yaml"]


def test_the_embedded_voice_graph_passes_its_test() -> None:
    path = library.find("voice")
    graph = load(path)
    for case in read_cases(cases_beside(path), graph):
        assert asyncio.run(run_case(graph, case, MonotonicClock())).differences == ()
