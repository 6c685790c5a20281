"""What the tests of streaming recognisers share: sounds, sessions fed in pieces, and streams beside strangers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from penstock.models.asr_session import AsrEvent, AsrRows, AsrSession, Streamer

SECOND = 1_000_000_000
Pcm = NDArray[np.float32]


def speech(seconds: float, seed: int = 0) -> Pcm:
    """Noise that swells and fades: (S,) at 16 kHz."""
    rng = np.random.default_rng(seed)
    envelope = 0.1 + np.abs(np.sin(np.arange(int(seconds * 16_000)) / 2500))
    return (rng.normal(size=int(seconds * 16_000)) * 0.2 * envelope).astype(np.float32)


def turn(seconds: float) -> Pcm:
    """A turn between silences that end it."""
    silence = (np.random.default_rng(2).normal(size=16_000) * 1e-5).astype(np.float32)
    return np.concatenate([silence[:4000], speech(seconds), silence, silence])


def events(asr: Streamer, pcm: Pcm, step: int) -> list[AsrEvent]:
    """All that a session says which is fed `step` samples at a time, and which goes on as its copy after three."""
    session, found = AsrSession(AsrRows(asr)), list[AsrEvent]()
    for at in range(0, len(pcm), step):
        found += session.push(pcm[at : at + step], at * SECOND // 16_000)
        if at // step == 3:
            session = session.snapshot()
    return found + session.finish()


def same_words_over_any_chunking(asr: Streamer, pcm: Pcm) -> list[AsrEvent]:
    """Commits in order, an endpoint that holds them all, and the same from pieces of other sizes."""
    found = events(asr, pcm, 320)
    commits = [e for e in found if e.kind == "commit"]
    ends = [e for e in found if e.kind == "endpoint"]
    assert len(commits) >= 3
    assert [e.text for e in ends] == [" ".join(e.text for e in commits)]
    assert all(a.end <= b.begin for a, b in zip(commits, commits[1:]))  # noqa: B905, RUF007
    for step in (1000, 7777):
        again = events(asr, pcm, step)
        assert [e.text for e in again if e.kind == "commit"] == [e.text for e in commits]
    return found


def beside_strangers(
    asr: Streamer, feed: Callable[[Any, int], None], rounds: int, strangers: Sequence[int]
) -> tuple[list[Any], list[Any], Any, Any]:
    """One stream alone, and the same beside strangers that begin at the given rounds: words and streams of both.

    feed: gives a stream its sound of a round.
    """
    words: list[list[Any]] = [[], []]
    kept: list[Any] = []
    for mine, begins in zip(words, ([], list(strangers)), strict=True):
        stream = asr.start()
        others = [asr.start() for _ in begins]
        for i in range(rounds):
            feed(stream, i)
            for other, begin in zip(others, begins, strict=True):
                if i >= begin:
                    feed(other, i + 100 + begin)
            while asr.ready(stream):
                key = asr.batch_key(stream)
                rows = [*(s for s in others if asr.ready(s) and asr.batch_key(s) == key), stream]
                asr.forward(rows)  # thrown away
                for row, heard in zip(rows, asr.forward(rows), strict=True):
                    said = asr.commit(row, heard)
                    if row is stream:
                        mine += said
            for other in others:
                while asr.ready(other):
                    asr.commit(other, asr.forward([other])[0])
        kept.append(stream)
    return words[0], words[1], kept[0], kept[1]
