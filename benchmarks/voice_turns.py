"""Turns of a spoken conversation: a command in real time, and an hour on the virtual clock."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
from penstock.models.voice import Spoken, Voice
from penstock.pipeline import registry
from penstock.pipeline.clock import SECOND, MonotonicClock
from penstock.pipeline.compiler import compile_text
from penstock.pipeline.frame import AudioFrame
from penstock.pipeline.session import Session
from penstock.pipeline.stage import Out, Outputs, Ports, Stage
from report import line, percentile, rss_mb

from tests.conversation import Out_, Person, Script, simulate
from tests.long_conversation import Figures, talk

COMMAND = """
penstock: 1
graph: command
nodes:
  mic:   {use: bench.mic}
  vad:   {use: vad.silero, in: mic.audio}
  asr:   {use: asr.pocketsphinx, in: {audio: mic.audio, speech: vad.speech}, params: {mode: commands}}
  turn:  {use: turn.manager, in: {speech: vad.speech, heard: asr.commit, partial: asr.partial}}
  agent: {use: agent.commands, in: {heard: turn.words}, scope: reply}
  voice: {use: tts.stream, in: agent.say, scope: reply}
  out:   {use: bench.out, in: {audio: voice.audio}}
cancel: {reply: {on: turn.barge_in, within: 120ms}}
"""


class Mic(Stage):
    """Somebody says "what time is it" and waits for the answer, at real-time pace."""

    ports = Ports(outputs={"audio": Out(AudioFrame, "live")})
    voice_ends: list[float] = []  # noqa: RUF012 - read by the benchmark
    rounds = 5
    voice: Voice

    async def run(self, out: Outputs) -> None:
        pieces: list[Spoken] = []
        self.voice.synthesise("what time is it", pieces.append, lambda: False)
        said = np.concatenate([p.pcm for p in pieces])
        loud = int(np.flatnonzero(np.abs(said) > 600)[-1])
        quiet = np.random.default_rng(0).normal(0, 20, 16_000 * 5).astype(np.int16)
        start, sent = self.ctx.clock.now(), 0
        for _ in range(self.rounds):
            turn = quiet.copy()
            turn[8_000 : 8_000 + len(said)] += said // 2
            for at in range(0, len(turn), 320):
                due = start + sent * SECOND // 16_000
                await self.ctx.clock.sleep(max(0, due - self.ctx.clock.now()))
                if at <= 8_000 + loud < at + 320:
                    self.voice_ends.append(time.perf_counter())
                await out.send("audio", AudioFrame(pts=due, pcm=turn[at : at + 320, None], rate_hz=16_000))
                sent += 320


class EarOut(Out_):
    """Notes when sound begins after silence."""

    begins: list[float] = []  # noqa: RUF012 - read by the benchmark

    async def _pull(self) -> None:
        quiet = 0
        while True:
            pcm, _ = await self.track.pull()
            loud = np.abs(pcm).max() > 200
            if loud and quiet > 25:
                self.begins.append(time.perf_counter())
            quiet = 0 if loud else quiet + 1


async def command(voice: Voice) -> dict[str, float | None]:
    """voice: asks "what time is it"."""
    Mic.voice = voice
    registry.EXTRA.update({"bench.mic": Mic, "bench.out": EarOut})
    plan = compile_text(COMMAND, "command.yaml")
    Mic.voice_ends.clear()
    EarOut.begins.clear()
    session = Session(plan, "s-bench", MonotonicClock())
    ends: list[float] = []
    session.listen(lambda e: ends.append(time.perf_counter()) if e.name == "speech_end" else None)
    await session.start()
    await session.wait()

    def waits(marks: list[float]) -> list[float]:
        return [
            (b - max(m for m in marks if m < b)) * 1000 for b in EarOut.begins if any(m < b for m in marks)
        ]

    from_end, from_voice = waits(ends), waits(Mic.voice_ends)
    line(part="command", answers=len(from_end), of=Mic.rounds, ms=[round(w) for w in from_end])
    return {
        "turn_end_to_audio_ms_p50": round(percentile(from_end, 0.5), 1) if from_end else None,
        "voice_end_to_audio_ms_p50": round(percentile(from_voice, 0.5), 1) if from_voice else None,
    }


# ---------------------------------------------------------------- an hour on the virtual clock


def conversation(seconds: float) -> dict[str, Any]:
    script = Script(words=lambda reply: 4 + reply * 7 % 12)
    found: list[Figures] = []
    sizes: list[float] = []

    async def scene(person: Person) -> None:
        async def watch() -> None:
            while True:
                await asyncio.sleep(seconds / 6)
                # the list of requests is the script's own: only what the session holds must not grow
                del script.requests[:-1]
                sizes.append(rss_mb())

        watching = asyncio.create_task(watch())
        found.append(await talk(person, seconds, seed=7))
        watching.cancel()

    started = time.process_time()
    simulate(scene, script)
    it = found[0]
    figures = {
        "seconds": seconds,
        "turns": it.turns,
        "lost_turns": it.lost,
        "stale_steps": it.stale,
        "barge_ins": it.barge_ins,
        "back_channels": it.backchannels,
        "coughs": it.coughs,
        "spoken_context_exact": round(it.contexts_exact / it.contexts, 4) if it.contexts else None,
        "barge_in_to_silence_sink_ms_p99": round(percentile(it.silence_ms, 0.99), 1),
        "false_interruption_resume_ms_p50": round(percentile(it.resume_ms, 0.5), 1),
        "answer_ms_p50": round(percentile(it.answer_ms, 0.5), 1),
        "rss_mb": [round(s) for s in sizes],
        "cpu_s": round(time.process_time() - started, 1),
    }
    line(part="conversation", **figures)
    return figures
