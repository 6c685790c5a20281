"""The fixture's word error and latency: synthesised commands, never trained on, through sessions fed 20 ms at a time."""

from __future__ import annotations

from dataclasses import dataclass, field

import jiwer
import numpy as np
import torch
from numpy.typing import NDArray
from penstock.models import whisper_loader
from penstock.models.asr_session import AsrEvent, AsrRows, AsrSession
from penstock.models.log_mel import LogMel
from penstock.models.training import flite_words
from penstock.models.training.command_speech import phrase
from penstock.models.training.offline import transcribe
from penstock.models.whisper_stream import WhisperStreamer
from report import line, note, percentile

SECOND = 1_000_000_000
LEAD, TAIL = 0.6, 1.2  # s of silence around a phrase
Pcm = NDArray[np.float32]


@dataclass
class Heard:
    commits: list[AsrEvent]
    revised: int = 0  # times that what was committed was not the same any more
    ends: list[AsrEvent] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join(e.text for e in self.commits)


def listen(rows: AsrRows, pcm: Pcm) -> Heard:
    """A session over all of it."""
    session, events, revised, before = AsrSession(rows), list[AsrEvent](), 0, list[str]()
    for at in range(0, len(pcm), 320):
        events += session.push(pcm[at : at + 320], at * SECOND // 16_000)
        given = [e.text for e in events if e.kind == "commit"]
        revised += given[: len(before)] != before
        before = given
    events += session.finish()
    kinds = {kind: [e for e in events if e.kind == kind] for kind in ("commit", "endpoint")}
    turns = " ".join(e.text for e in kinds["endpoint"])
    revised += turns != " ".join(e.text for e in kinds["commit"])  # a turn's text is its commits
    return Heard(kinds["commit"], revised, kinds["endpoint"])


def silence(seconds: float) -> Pcm:
    return np.zeros(int(seconds * 16_000), np.float32)


def noisy(parts: list[Pcm], rng: np.random.Generator) -> Pcm:
    pcm = np.concatenate(parts)
    return pcm + rng.normal(size=len(pcm)).astype(np.float32) * np.float32(1e-4)


def fixture(phrases: int) -> dict[str, object]:
    """Print and give back the figures; only reasons without the voice or the weights."""
    if not flite_words.available() or not whisper_loader.FIXTURE.is_file():
        why = "needs libflite1 and models/data/asr_fixture.safetensors"
        note(f"the fixture's figures are left out: {why}")
        return {
            "wer_streaming": None,
            "wer_offline": None,
            "word_latency_ms_p50": None,
            "fixture_reason": why,
        }
    checkpoint = whisper_loader.read(whisper_loader.FIXTURE)
    model = whisper_loader.build(checkpoint)
    words = whisper_loader.vocabulary(checkpoint, whisper_loader.FIXTURE)
    assert checkpoint.plan is not None
    rows = AsrRows(WhisperStreamer(model, words, checkpoint.plan))
    rng = np.random.default_rng(77)
    said, streamed, offline = list[str](), list[str](), list[str]()
    late, revised = list[float](), 0
    for _ in range(phrases):
        text = " ".join(phrase(rng, 5))
        spoken = flite_words.speak(text)
        pcm = noisy([silence(LEAD), spoken.pcm, silence(TAIL)], rng)
        heard = listen(rows, pcm)
        revised += heard.revised
        said.append(text)
        streamed.append(heard.text)
        given = [(w, e.heard) for e in heard.commits for w in e.text.split()]
        if [w for w, _ in given] == text.split():  # latency needs to know which word is which
            late += [h / 1e6 - (end + LEAD) * 1000 for (_, h), end in zip(given, spoken.ends, strict=True)]
        # as much silence as the session heard, whose turn ends after .7 s and a block
        frames = LogMel().forward(torch.from_numpy(pcm[: len(pcm) - 4800]))
        offline.append(transcribe(model, frames, checkpoint.plan, words))
    figures: dict[str, object] = {
        "chunk_ms": checkpoint.plan.chunk_ms, "wer_streaming": round(jiwer.wer(said, streamed), 4),
        "wer_offline": round(jiwer.wer(said, offline), 4),
        "word_latency_ms_p50": round(percentile(late, 0.5)) if late else None,
        "word_latency_ms_p99": round(percentile(late, 0.99)) if late else None,
    }  # fmt: skip
    line(
        bench="fixture",
        phrases=phrases,
        words=sum(len(s.split()) for s in said),
        **figures,
        revisions=revised,
    )
    seams, more = long_turns(rows, max(2, phrases // 20))
    return figures | seams | {"committed_revisions": revised + more}


def long_turns(rows: AsrRows, turns: int) -> tuple[dict[str, object], int]:
    """Turns of some 20 s in the fixture's window of 4 s: it slides every 2 s, on a model that knows 6 words at once."""
    rng = np.random.default_rng(6)
    said, streamed, revised, seconds = list[str](), list[str](), 0, 0.0
    for _ in range(turns):
        parts, text = [silence(LEAD)], list[str]()
        for _ in range(12):
            some = phrase(rng, 5)
            text += some
            parts += [flite_words.speak(" ".join(some)).pcm, silence(rng.uniform(0.05, 0.3))]
        parts.append(silence(TAIL))
        pcm = noisy(parts, rng)
        heard = listen(rows, pcm)
        revised += heard.revised
        seconds += len(pcm) / 16_000
        said.append(" ".join(text))
        streamed.append(heard.text)
    found = jiwer.process_words(said, streamed)
    words = sum(len(s.split()) for s in said)
    figures: dict[str, object] = {
        "long_turn_wer": round(found.wer, 4), "words_lost_at_seams": round(found.deletions / words, 4)
    }  # fmt: skip
    line(bench="long_turns", turns=turns, seconds=round(seconds), words=words, **figures,
         doubled=found.insertions, misheard=found.substitutions, revisions=revised)  # fmt: skip
    return figures, revised
