"""Turn taking, measured through the stages: how soon a voice is noticed, how soon and how rightly a turn is ended.

Dialogues are spoken by flite: turns with pauses of 200 to 900 ms in the middle, after words that leave a sentence open
or not. The recogniser is played by the truth: a word comes as `partial` when it has ended and 300 ms have passed, and as
`commit` one word later. Real recordings come without text, so there silence alone decides.
"""

from __future__ import annotations

from pathlib import Path

import asr_embedded
import numpy as np
from asr_embedded import Inline, Kept, decode
from penstock.models.training import flite_words
from penstock.pipeline.clock import SECOND
from penstock.pipeline.frame import AudioFrame, EventFrame, TokenFrame
from penstock.stages.turn import TurnDetector
from penstock.stages.vad import SileroVad
from report import line, note, percentile

RATE_HZ = 16_000
LATE = 0.3  # s until a word is known
TURNS = (
    ("show me the", "time please"),
    ("could you make it", "look like a cartoon"),
    ("what do you see", ""),
    ("i would like to", "go for a walk"),
    ("stop", ""),
    ("turn it off", "and show me what you see"),
    ("my sister bought three apples and", "a loaf of bread"),
    ("switch to watercolor", ""),
    ("tell me", "what the weather is like"),
    ("thank you", ""),
)


class Listening(Inline):
    connected = frozenset({"audio", "probability", "vad", "turn", "partial", "commit"})


class Deaf(Listening):
    connected = frozenset({"audio", "probability", "vad", "turn"})


Said = list[tuple[float, str]]  # when each word is known, s
Spans = list[tuple[float, float]]  # turns: onset and end, s


def dialogue(seed: int) -> tuple[np.ndarray, Said, Spans]:
    """(S,) int16, words, turns; a second and a half between turns."""
    rng = np.random.default_rng(seed)
    parts, at = [np.zeros(RATE_HZ, np.float32)], 1.0
    words: Said = []
    spans: Spans = []
    for first, second in TURNS:
        begin = end = 0.0
        for i, text in enumerate(t for t in (first, second) if t):
            spoken = flite_words.speak(text)
            if i:
                pause = float(rng.uniform(0.2, 0.9))
                parts.append(np.zeros(int(pause * RATE_HZ), np.float32))
                at += len(parts[-1]) / RATE_HZ
            else:
                begin = at + spoken.starts[0]
            words += [(at + e + LATE, w) for w, e in zip(text.split(), spoken.ends, strict=False)]
            end = at + spoken.ends[-1]
            parts.append(spoken.pcm)
            at += len(spoken.pcm) / RATE_HZ
        spans.append((begin, end))
        parts.append(np.zeros(int(1.5 * RATE_HZ), np.float32))
        at += 1.5
    pcm = np.concatenate(parts)
    noisy = pcm * 32767 + rng.normal(0, 20, len(pcm))
    return noisy.clip(-32768, 32767).astype(np.int16), words, spans


async def heard(pcm: np.ndarray, words: Said) -> list[tuple[float, EventFrame]]:
    """Every event with the time at which it was known, s."""
    vad, turn, marks, out = SileroVad(), TurnDetector(), Kept(), Kept()
    for stage in (vad, turn):
        stage.ctx = Listening() if words else Deaf()
        await stage.setup()
    found: list[tuple[float, EventFrame]] = []
    waiting, before = list(words), ""
    for at in range(0, len(pcm), 160):
        pts, now = at * SECOND // RATE_HZ, (at + 160) / RATE_HZ
        vad.process("audio", AudioFrame(pts=pts, pcm=pcm[at : at + 160, None], rate_hz=RATE_HZ), marks)
        for port, frame in marks.frames:
            if port == "probability":
                turn.process("vad", frame, out)
        marks.frames.clear()
        while waiting and waiting[0][0] <= now:
            if before:
                turn.process("commit", TokenFrame(pts=pts, until=pts, text=before), out)
            before = waiting.pop(0)[1]
            turn.process("partial", TokenFrame(pts=pts, until=pts, text=before), out)
        for _, frame in out.frames:
            assert isinstance(frame, EventFrame)
            found.append((now, frame))
            if frame.name == "end_of_turn":
                before = ""
        out.frames.clear()
    return found


async def turns(data: Path) -> dict[str, object]:
    """Print and give back the figures."""
    if not flite_words.available():
        note("turns are left out: they need libflite1")
        return {"turn_reason": "needs libflite1"}
    late: list[float] = []
    waits: list[float] = []
    cut = total = 0
    for seed in range(3):
        pcm, words, spans = dialogue(seed)
        events = await heard(pcm, words)
        for i, (begin, end) in enumerate(spans):
            until = spans[i + 1][0] - 0.1 if i + 1 < len(spans) else len(pcm) / RATE_HZ
            starts = [
                t - begin for t, e in events if e.name == "speech_start" and begin - 0.2 < t < begin + 0.4
            ]
            ends = [t - end for t, e in events if e.name == "end_of_turn" and begin < t < until]
            total += 1
            cut += any(t < 0 for t in ends)
            late += [t * 1000 for t in starts[:1]]
            waits += [t * 1000 for t in ends if t >= 0][:1]
    figures: dict[str, object] = {
        "turns": total, "speech_start_ms_p50": round(percentile(late, 0.5)), "speech_start_ms_p95": round(percentile(late, 0.95)),
        "end_of_turn_ms_p50": round(percentile(waits, 0.5)), "end_of_turn_ms_p95": round(percentile(waits, 0.95)),
        "turns_cut_in_a_pause": round(cut / total, 3),
    }  # fmt: skip
    line(bench="turns", **figures)
    for name in asr_embedded.TRANSCRIPTS:
        if (data / name).is_file():
            pcm = decode(data / name)
            events = await heard(pcm, [])
            ends = [e.fields["silence_ms"] for _, e in events if e.name == "end_of_turn"]
            line(
                bench="turns_recording",
                name=name,
                seconds=round(len(pcm) / RATE_HZ),
                turns=len(ends),
                silence_ms=ends,
            )
    return figures
