"""A person and a spoken agent on the virtual clock: the real turn manager, chat, voice stage and paced sink; scripted
ears, mouth and words. What was heard is read from the samples themselves, by nobody's word but theirs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from penstock.models.voice import Mark, Marked, Sink, Spoken
from penstock.pipeline import registry
from penstock.pipeline.clock import MS, NEVER, SECOND, LoopClock
from penstock.pipeline.compiler import compile_text
from penstock.pipeline.frame import AudioFrame, EventFrame, Frame, TokenFrame
from penstock.pipeline.graph import Plan
from penstock.pipeline.pool_plan import PoolPlan
from penstock.pipeline.pools import DevicePool, Pools
from penstock.pipeline.session import Session
from penstock.pipeline.stage import Control, Flush, In, Out, Outputs, Ports, Stage
from penstock.pipeline.thread_pool import PoolStats
from penstock.pipeline.virtual_loop import run_virtual
from penstock.stages.chat_calls import FunctionCall
from penstock.stages.chat_client import Limits
from penstock.stages.llm import LlmChat
from penstock.stages.tts import StreamTts
from penstock.transport.audio_out import AUDIO_RATE, AudioOut

GRAPH = """
penstock: 1
graph: talk
nodes:
  ears:  {use: sim.ears}
  turn:  {use: turn.manager, in: {speech: ears.speech, heard: ears.commit, partial: ears.partial}}
  agent: {use: sim.chat, in: {heard: turn.words}, scope: reply, base_url: "http://localhost/v1", model: m, system: ""}
  voice: {use: sim.voice, in: agent.say, scope: reply}
  out:   {use: sim.out, in: {audio: voice.audio}}
cancel: {reply: {on: turn.barge_in, within: 60ms}}
"""

WORD_MS, END_MS = 240, 10
REPLIES = 990  # told apart; ten bits of the level
FLAG = 16  # words of one reply at most, and the bit of the last END_MS of a word


def level(reply: int, word: int, end: bool) -> int:
    """The one value of all samples of a word."""
    return 1000 + 2 * FLAG * (reply % REPLIES) + word + (FLAG if end else 0)


def word_text(reply: int, word: int) -> str:
    return f"r{reply}w{word}"


class LevelVoice:
    """Says "r3w7 " as 240 ms of one value, so that an ear can tell what it hears."""

    name, rate_hz = "level", AUDIO_RATE

    def synthesise(
        self, text: str, sink: Sink, should_stop: Callable[[], bool], *, rate: float = 1.0
    ) -> None:
        parts: list[NDArray[np.int16]] = []
        marks: list[Mark] = []
        at = samples = 0
        for word in re.findall(r"r\d+w\d+\S*", text):
            reply, _, number = word.strip(".,").removeprefix("r").partition("w")
            length, end = WORD_MS * AUDIO_RATE // 1000, END_MS * AUDIO_RATE // 1000
            pcm = np.full(length, level(int(reply), int(number), False), np.int16)
            pcm[-end:] = level(int(reply), int(number), True)
            parts.append(pcm)
            samples += length
            at = text.index(word, at) + len(word)
            until = at
            while until < len(text) and text[until].isspace():
                until += 1
            marks.append(Mark(until, samples))
        if not parts:
            return
        whole, marked = np.concatenate(parts), Marked(text, marks)
        step = AUDIO_RATE * 40 // 1000
        for start in range(0, len(whole), step):
            if should_stop():
                return
            last = start + step >= len(whole)
            piece = marked.upto(start + step)
            sink(Spoken(whole[start : start + step], piece + marked.rest() if last else piece))


@dataclass(slots=True)
class Timings:
    """Of the simulated engines, in ns."""

    first_token: int = 150 * MS
    token: int = 20 * MS
    synthesis: int = 25 * MS  # a clause


@dataclass
class Script:
    """What a simulation is given and what it leaves behind."""

    timings: Timings = field(default_factory=Timings)
    words: Callable[[int], int] = lambda reply: 12
    requests: list[list[dict[str, Any]]] = field(default_factory=list[list[dict[str, Any]]])
    told: set[str] = field(default_factory=set[str])  # every line of a user's that any request held
    said: dict[int, str] = field(
        default_factory=dict[int, str]
    )  # what the last request that tells of a reply says
    replies: int = 0


class ScriptedClient:
    """Answers with the words of the next reply."""

    def __init__(self, script: Script) -> None:
        self._script = script

    async def stream(
        self, request: Mapping[str, Any], put: Callable[[str], Awaitable[None]]
    ) -> list[FunctionCall]:
        script = self._script
        script.requests.append([dict(m) for m in request["messages"]])
        for message in script.requests[-1]:
            content = str(message["content"])
            if message["role"] == "user":
                script.told.update(content.split("\n"))
            elif message["role"] == "assistant" and content.startswith("r"):
                script.said[int(content.removeprefix("r").partition("w")[0])] = content
        script.replies += 1
        reply = script.replies
        await asyncio.sleep(script.timings.first_token / SECOND)
        count = script.words(reply)
        for word in range(count):
            stop = ". " if word == count - 1 or word % 6 == 5 else " "
            await put(word_text(reply, word) + stop)
            await asyncio.sleep(script.timings.token / SECOND)
        return []

    async def close(self) -> None:
        pass


class Ears(Stage):
    """Plays what the person does: put by the test into `queue`."""

    ports = Ports(
        outputs={
            "speech": Out(EventFrame, "token"),
            "partial": Out(TokenFrame, "token"),
            "commit": Out(TokenFrame, "token"),
        }
    )

    async def setup(self) -> None:
        self.queue: asyncio.Queue[tuple[str, Frame] | None] = asyncio.Queue()

    async def run(self, out: Outputs) -> None:
        while (item := await self.queue.get()) is not None:
            out.post(*item)


@dataclass(slots=True)
class Heard:
    """What was at the ear from the step at `since` to that at `at`: which words (reply, word), which of them ended."""

    since: int
    at: int
    words: frozenset[tuple[int, int]]
    ended: frozenset[tuple[int, int]]
    silent: bool


class Out_(Stage):
    """A sink that plays in real time, and an ear beside it."""

    ports = Ports(inputs={"audio": In(AudioFrame)})

    async def setup(self) -> None:
        self.track = AudioOut(self.ctx.clock)
        self.heard: list[Heard] = []
        self.ctx.playback.attach(AUDIO_RATE, self.track.hold)
        self.track.on_step = self.ctx.playback.step
        self._pulling = asyncio.create_task(self._pull(), name="ear")

    async def process(self, port: str, frame: Frame, out: Outputs) -> None:
        assert isinstance(frame, AudioFrame)
        await self.track.write(frame)

    async def control(self, message: Control) -> None:
        if isinstance(message, Flush):
            self.track.flush(message.epoch)

    async def close(self) -> None:
        self._pulling.cancel()

    async def _pull(self) -> None:
        while True:
            pcm, _ = await self.track.pull()
            step = listen(self.ctx.clock.now(), pcm)
            last = self.heard[-1] if self.heard else step
            if last is not step and (last.words, last.ended, last.silent) == (
                step.words,
                step.ended,
                step.silent,
            ):
                last.at = step.at
            else:
                self.heard.append(step)


def listen(at: int, pcm: NDArray[np.int16]) -> Heard:
    """What 20 ms say. A level counts from 2 ms on: a ramp passes through many."""
    values, counts = np.unique(pcm, return_counts=True)
    words: set[tuple[int, int]] = set()
    ended: set[tuple[int, int]] = set()
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        if value < 1000 or count < AUDIO_RATE * 2 // 1000:
            continue
        reply, rest = divmod(value - 1000, 2 * FLAG)
        word = (reply, rest % FLAG)
        (ended if rest >= FLAG else words).add(word)
    return Heard(at, at, frozenset(words | ended), frozenset(ended), not pcm.any())


class InlineThreads:
    """Stands in for a thread pool: the work is done at once and costs virtual time."""

    def __init__(self, cost: int) -> None:
        self._cost = cost
        self.stats = PoolStats()

    async def call(self, fn: Callable[..., Any], *args: object, deadline: int = NEVER) -> Any:
        await asyncio.sleep(self._cost / SECOND)
        self.stats.done += 1
        return fn(*args)

    def close(self) -> None:
        pass


class InlinePools(Pools):
    """Pools without threads."""

    cost = 25 * MS

    def get(self, name: str, plan: PoolPlan | None = None) -> DevicePool:
        pool = super().get(name, plan)
        pool.threads = InlineThreads(self.cost)  # type: ignore[assignment]
        return pool


def plan(script: Script, graph: str = GRAPH) -> Plan:
    """The graph with its scripted stages."""

    class Chat(LlmChat):
        def connect(self, base_url: str, key: str, limits: Limits) -> Any:
            return ScriptedClient(script)

    class Voice(StreamTts):
        async def load(self) -> Any:
            return LevelVoice()

    stages: dict[str, type[Stage]] = {"sim.ears": Ears, "sim.chat": Chat, "sim.voice": Voice, "sim.out": Out_}
    registry.EXTRA.update(stages)
    try:
        return compile_text(graph, "talk.yaml")
    finally:
        for use in stages:
            registry.EXTRA.pop(use, None)


class Person:
    """Drives one session: speaks, and knows what it heard."""

    def __init__(self, session: Session, script: Script) -> None:
        self.session, self.script = session, script
        self.clock = session.clock
        self.events: list[tuple[int, str, Mapping[str, Any]]] = []
        self.turns = 0
        session.listen(lambda e: self.events.append((self.clock.now(), e.name, e.fields)))

    @property
    def _stage(self) -> Any:
        return self.session.runners["ears"].stage

    @property
    def ear(self) -> list[Heard]:
        return self.session.runners["out"].stage.heard  # type: ignore[attr-defined]

    def put(self, port: str, frame: Frame) -> None:
        self._stage.queue.put_nowait((port, frame))

    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def starts(self) -> None:
        self.put("speech", EventFrame(pts=self.clock.now(), name="speech_start"))

    def stops(self) -> None:
        self.put("speech", EventFrame(pts=self.clock.now(), name="speech_end"))

    async def says(
        self, text: str, seconds: float = 1.0, *, silence: float = 0.48, partials: bool = True
    ) -> None:
        """Speech of so long; the VAD ends it after a silence, the recogniser commits 80 ms later."""
        began = self.clock.now()
        self.starts()
        if partials and text:
            await asyncio.sleep(seconds * 0.4)
            self.put("partial", TokenFrame(pts=began, text=text.split()[0], until=self.clock.now()))
            await asyncio.sleep(seconds * 0.6)
        else:
            await asyncio.sleep(seconds)
        until = self.clock.now()
        await asyncio.sleep(silence)
        self.stops()
        if text:
            await asyncio.sleep(0.08)
            self.put("commit", TokenFrame(pts=began, text=text, until=until))

    async def asks(self, seconds: float = 1.0) -> str:
        """A question of its own; its text."""
        self.turns += 1
        text = f"question {self.turns}"
        await self.says(text, seconds)
        return text

    async def until(self, condition: Callable[[], bool], limit: float = 30) -> None:
        async with asyncio.timeout(limit):
            while not condition():  # noqa: ASYNC110 - on the virtual clock
                await asyncio.sleep(0.01)

    @property
    def hears(self) -> bool:
        return bool(self.ear) and not self.ear[-1].silent

    def told(self, name: str) -> list[int]:
        return [at for at, event, _ in self.events if event == name]

    def heard_words(self, reply: int) -> list[int]:
        """Words of a reply whose last sample was heard, in order, each once."""
        seen: dict[int, None] = {}
        for step in self.ear:
            seen |= dict.fromkeys(w for r, w in sorted(step.ended) if r == reply % REPLIES)
        return list(seen)


def simulate(
    scene: Callable[[Person], Awaitable[None]], script: Script | None = None, graph: str = GRAPH
) -> Person:
    """Play a scene on the virtual clock."""
    its = script or Script()

    async def main() -> Person:
        pools = InlinePools()
        pools.cost = its.timings.synthesis
        session = Session(plan(its, graph), "s-sim", LoopClock(asyncio.get_running_loop()), pools=pools)
        await session.start()
        person = Person(session, its)
        try:
            await scene(person)
        finally:
            await session.close()
            pools.close()
        return person

    return run_virtual(main())
