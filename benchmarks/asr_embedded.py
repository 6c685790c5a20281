"""The embedded speech stages, measured: word error, false commands, cost, and how soon they react.

Real recordings (in ../shared/data beside the checkout, left out when missing) go through the VAD and the
open mode; flite voices say every command, and sentences that are none, to the commands mode. The open
mode's search settings were chosen on these same two recordings: expect no better on others.

    make bench AREA=asr_embedded [ARGS=--full]    (every command in four voices; else each third in two)
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import av
import jiwer
import numpy as np
from numpy.typing import NDArray
from penstock.models import silero_vad, voices
from penstock.models.pocketsphinx_asr import phrase_recogniser
from penstock.models.voice import NoVoice, Spoken, Voice
from penstock.pipeline.clock import SECOND, MonotonicClock
from penstock.pipeline.frame import AudioFrame, EventFrame, Frame
from penstock.stages.asr import PocketSphinxAsr
from penstock.stages.commands import COMMANDS, exact, spoken_phrases
from penstock.stages.vad import SileroVad
from report import line, note, percentile, rss_mb

RATE_HZ = 16_000
DATA = Path(__file__).parents[2] / "shared" / "data"
VOICES = ("flite:rms", "flite:slt", "flite:awb", "flite:kal16")
SENTENCE = "As far as I can see, the picture is bright, mostly blue, with some movement."
TRANSCRIPTS = {
    "jfk.flac": "and so my fellow americans ask not what your country can do for you ask what you can do for "
    "your country",
    "two_cities_16k.wav": "it was the best of times it was the worst of times it was the age of wisdom it "
    "was the age of foolishness it was the epoch of belief it was the epoch of incredulity it was the season "
    "of light it was the season of darkness it was the spring of hope it was the winter of despair we "
    "had everything before us we had nothing before us we were all going direct to heaven we were all going "
    "direct the other way in short the period was so far like the present period that some of its noisiest "
    "authorities insisted on its being received for good or for evil in the superlative degree of "
    "comparison only",
}
OTHERS = (
    "the weather is nice today and i would like to go for a walk",
    "my sister bought three apples at the market",
    "can you send an email to my boss",
    "the stock market fell by two percent on monday",
    "he was not very happy about the result",
    "i think we should leave before it gets dark",
    "please book a table for four at seven thirty",
    "the train to london was delayed again",
    "there is nothing left in the fridge",
    "how much does this cost",
    "where did you put my keys",
    "it was a bright cold day in april",
    "we need to talk about the budget for next year",
    "turn left at the second traffic light",
    "our neighbours have a very loud dog",
    "play some jazz music in the kitchen",
    "yes",
    "no",
    "okay",
    "maybe tomorrow",
    "i see",
    "what did you say",
    "that is not what i wanted",
    "call my mother",
)


def said(voice: Voice, text: str) -> NDArray[np.float32]:
    """(T,) at 16 kHz, quiet, 0.3 s of room around it, a little noise."""
    pieces: list[Spoken] = []
    voice.synthesise(text, pieces.append, lambda: False)
    pad = np.zeros(RATE_HZ * 3 // 10, np.int16)
    pcm = np.concatenate([pad, *(p.pcm for p in pieces), pad]).astype(np.float32) / 32768
    noise = np.random.default_rng(0).normal(0, 0.001, len(pcm))
    return (0.3 * pcm + noise).astype(np.float32)


def commands(full: bool) -> None:
    """Share of commands heard as said, and of other sentences taken for one, for each voice."""
    recogniser = phrase_recogniser(spoken_phrases())
    phrases = list(COMMANDS)[:: 1 if full else 3]
    for name in VOICES if full else VOICES[:2]:
        voice = voices.load(name)
        right = wrong = false = 0
        seconds = cost = 0.0
        for text in (*phrases, *OTHERS):
            audio = said(voice, text)
            seconds += len(audio) / RATE_HZ
            start = time.process_time()
            recogniser.begin()
            recogniser.advance(audio)
            heard = recogniser.finish()
            cost += time.process_time() - start
            meant, understood = COMMANDS.get(text), exact(heard)
            if meant is None:
                false += understood is not None
            else:
                right += understood == meant
                wrong += understood not in (None, meant)
        line(
            part="commands",
            voice=name,
            heard=round(right / len(phrases), 3),
            misheard=round(wrong / len(phrases), 3),
            false_commands=round(false / len(OTHERS), 3),
            rtf=round(cost / seconds, 3),
        )


class Inline:
    """Just enough of a session for a stage, and its pool: work is done at once."""

    session, node, epoch, realtime = "bench", "node", 0, False
    connected = frozenset({"audio", "speech", "partial", "commit", "turn"})
    clock = MonotonicClock()

    def pool(self, name: str | None = None) -> Inline:
        return self

    async def call(self, fn, *args, deadline=0):
        return fn(*args)

    def emit(self, event: str, **fields: object) -> None:
        note(f"{event} {fields}")


class Kept:
    """Outputs that keep the frames."""

    epoch, source = 0, ""

    def __init__(self) -> None:
        self.frames: list[tuple[str, Frame]] = []

    def post(self, port: str, frame: Frame) -> None:
        self.frames.append((port, frame))


def recordings() -> dict[str, float]:
    """Word error rate of the open mode on real speech, through the stages that captions.yaml uses."""
    errors: dict[str, float] = {}
    for name, transcript in TRANSCRIPTS.items():
        if not (DATA / name).exists():
            note(f"left out: {DATA / name} is not there")
            continue
        pcm = decode(DATA / name)
        start = time.process_time()
        marks, text = asyncio.run(captions(pcm))
        cost = (time.process_time() - start) / (len(pcm) / RATE_HZ)
        errors[name] = round(jiwer.wer(transcript, text), 3)
        late = [m.fields["late_ms"] for m in marks if m.name == "speech_start"]
        line(part="recording", name=name, wer=errors[name], rtf=round(cost, 3), vad_start_late_ms=max(late))
    return errors


async def captions(pcm: NDArray[np.int16]) -> tuple[list[EventFrame], str]:
    """The VAD's events and all that the recogniser commits."""
    vad, asr = SileroVad(), PocketSphinxAsr(params=PocketSphinxAsr.Params(mode="open"))
    for stage in (vad, asr):
        stage.ctx = Inline()
        await stage.setup()
    marks, out, told = Kept(), Kept(), 0
    for at in range(0, len(pcm), 320):
        frame = AudioFrame(pts=at * SECOND // RATE_HZ, pcm=pcm[at : at + 320, None], rate_hz=RATE_HZ)
        vad.process("audio", frame, marks)
        await asr.process("audio", frame, out)
        for _, mark in marks.frames[told:]:
            await asr.process("speech", mark, out)
        told = len(marks.frames)
    vad.finish(marks)
    for _, mark in marks.frames[told:]:
        await asr.process("speech", mark, out)
    await asr.finish(out)
    await asr.close()
    text = " ".join(f.text for port, f in out.frames if port == "commit")
    return [m for _, m in marks.frames if isinstance(m, EventFrame)], text


def vad_cost() -> float:
    """CPU ms for each 32 ms window."""
    model = silero_vad.load()
    state, window = model.init_state(), np.zeros(silero_vad.WINDOW, np.float32)
    start = time.process_time()
    for _ in range(500):
        model.step(window, state)
    return (time.process_time() - start) * 1000 / 500


def first_audio() -> None:
    """Wall ms from the text of a clause to its first samples, and CPU s a second of speech."""
    for name in (*VOICES, "espeak"):
        try:
            voice = voices.load(name)
        except NoVoice as e:
            note(f"left out: {e}")
            continue
        waits: list[float] = []
        samples = 0
        start = time.process_time()
        for _ in range(10):
            pieces: list[tuple[float, int]] = []
            begun = time.perf_counter()
            voice.synthesise(
                SENTENCE, lambda p, at=pieces: at.append((time.perf_counter(), len(p.pcm))), lambda: False
            )
            waits.append((pieces[0][0] - begun) * 1000)
            samples += sum(n for _, n in pieces)
        line(
            part="voice",
            voice=name,
            first_audio_ms_p50=round(percentile(waits, 0.5), 1),
            first_audio_ms_max=round(max(waits), 1),
            rtf=round((time.process_time() - start) / (samples / voice.rate_hz), 4),
        )


def decode(path: Path) -> NDArray[np.int16]:
    """(T,) at 16 kHz."""
    resampler = av.AudioResampler("s16", "mono", RATE_HZ)
    with av.open(str(path)) as container:
        blocks = [b.to_ndarray()[0] for f in container.decode(audio=0) for b in resampler.resample(f)]
    return np.concatenate(blocks)


def main() -> None:
    try:
        commands("--full" in sys.argv[1:])
    except NoVoice as e:
        note(f"left out: {e}")
    first_audio()
    errors = recordings()
    line(area="asr_embedded", wer=errors, vad_ms_per_32ms=round(vad_cost(), 3), rss_mb=round(rss_mb()))


if __name__ == "__main__":
    main()
