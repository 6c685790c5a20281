"""A simulated dialogue without models: somebody talks and interrupts at random, a reply is thought up and spoken."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

import numpy as np
from penstock.pipeline.clock import MS, SECOND, LoopClock
from penstock.pipeline.edge import Bound
from penstock.pipeline.frame import AudioFrame, Frame, TokenFrame
from penstock.pipeline.graph import CancelRule, EdgePlan, NodePlan, Plan
from penstock.pipeline.session import Session, SessionEvent
from penstock.pipeline.stage import Control, Flush, In, NoFields, Out, Outputs, Ports, Stage
from penstock.pipeline.virtual_loop import run_virtual

PCM = np.zeros((320, 1), np.int16)  # 20 ms at 16 kHz
TICK = 20 * MS


class Caller(Stage):
    """Talks for 0.4 to 3 s, is silent for 0.2 to 5 s, whatever the other one does."""

    ports = Ports(outputs={"audio": Out(AudioFrame), "heard": Out(TokenFrame, "token")})
    length = 0
    seed = 0

    async def run(self, out: Outputs) -> None:
        rng, clock = random.Random(self.seed), self.ctx.clock
        turn, talking, left = 0, False, 0
        for i in range(self.length // TICK):
            now = clock.now()
            if left <= 0:
                talking = not talking
                left = rng.randrange(20, 150) if talking else rng.randrange(10, 250)
                if talking:
                    self.ctx.emit("speech_start")
                elif rng.random() < 0.9:  # the others are coughs
                    turn += 1
                    out.post("heard", TokenFrame(pts=now, text=f"turn {turn}", utterance=turn))
            left -= 1
            out.post("audio", AudioFrame(pts=now, deadline=now + 200 * MS, pcm=PCM, rate_hz=16_000))
            await clock.sleep((i + 1) * TICK - clock.now())


class Level(Stage):
    """Runs on the spot, as a voice detector does."""

    inline = True
    ports = Ports(inputs={"audio": In(AudioFrame)}, outputs={"audio": Out(AudioFrame)})

    def process(self, port: str, frame: Frame, out: Outputs) -> None:
        out.post("audio", frame)


class Recogniser(Stage):
    ports = Ports(inputs={"audio": In(AudioFrame)})

    def process(self, port: str, frame: Frame, out: Outputs) -> None:
        pass


class Voided(Stage):
    """Remembers which epoch is void."""

    async def setup(self) -> None:
        self.void = -1
        self.rng = random.Random(f"{Caller.seed} {self.ctx.node}")

    async def control(self, message: Control) -> None:
        if isinstance(message, Flush):
            self.void = message.epoch - 1


class Mind(Voided):
    """5 to 40 words a turn, one in 10 to 60 ms."""

    ports = Ports(inputs={"heard": In(TokenFrame)}, outputs={"say": Out(TokenFrame, "token")})

    async def process(self, port: str, frame: Frame, out: Outputs) -> None:
        epoch = out.epoch
        await self.ctx.clock.sleep(self.rng.randrange(80, 400) * MS)
        for i in range(self.rng.randrange(5, 40)):
            if epoch <= self.void:
                return
            await self.ctx.clock.sleep(self.rng.randrange(10, 60) * MS)
            await out.send("say", TokenFrame(pts=frame.pts + i, text="word ", epoch=epoch, end=False))


class Voice(Voided):
    """5 to 20 frames a word, faster than they are played."""

    ports = Ports(inputs={"say": In(TokenFrame)}, outputs={"audio": Out(AudioFrame, "generated")})

    async def process(self, port: str, frame: Frame, out: Outputs) -> None:
        epoch = out.epoch
        for i in range(self.rng.randrange(5, 20)):
            if epoch <= self.void:
                return
            await self.ctx.clock.sleep(2 * MS)
            pts = frame.pts + i * TICK
            await out.send("audio", AudioFrame(pts=pts, epoch=epoch, pcm=PCM, rate_hz=16_000))


class Ear(Stage):
    """Plays 20 ms in 20 ms. `stale` counts frames that began to play after their epoch was over."""

    ports = Ports(inputs={"audio": In(AudioFrame)})

    async def setup(self) -> None:
        self.played = self.stale = self.epoch = 0

    async def process(self, port: str, frame: Frame, out: Outputs) -> None:
        self.played += 1
        self.stale += frame.epoch < self.epoch
        await self.ctx.clock.sleep(TICK)


@dataclass(frozen=True, slots=True)
class Told:
    """What a simulation did."""

    events: int
    digest: str
    interruptions: int
    flushed: int
    played: int
    stale: int
    unaccounted: int  # frames neither taken nor lost


def plan() -> Plan:
    live, token = Bound("drop_oldest", span=200 * MS), Bound("block", count=256)
    speech = Bound("block", span=200 * MS)

    def node(name: str, cls: type[Stage], *inputs: EdgePlan, scope: str = "") -> NodePlan:
        return NodePlan(name, name, cls, NoFields(), NoFields(), inputs, scope=scope)

    nodes = {
        "caller": node("caller", Caller),
        "level": node("level", Level, EdgePlan("caller", "audio", "level", "audio", live)),
        "asr": node("asr", Recogniser, EdgePlan("level", "audio", "asr", "audio", live)),
        "mind": node("mind", Mind, EdgePlan("caller", "heard", "mind", "heard", token), scope="reply"),
        "voice": node("voice", Voice, EdgePlan("mind", "say", "voice", "say", token), scope="reply"),
        "ear": node("ear", Ear, EdgePlan("voice", "audio", "ear", "audio", speech)),
    }
    return Plan("dialogue", nodes, cancel=(CancelRule("reply", "caller", "speech_start"),))


def dialogue(length: int, seed: int) -> Told:
    """length: ns of virtual time."""
    Caller.length, Caller.seed = length, seed
    interruptions = 0

    async def main() -> Session:
        nonlocal interruptions
        session = Session(plan(), "s-dialogue", LoopClock(asyncio.get_running_loop()))

        await session.start()
        ear = session.runners["ear"].stage
        assert isinstance(ear, Ear)

        def told(event: SessionEvent) -> None:
            nonlocal interruptions
            if event.name == "speech_start":
                interruptions += 1
                ear.epoch = session.epochs["reply"]

        session.listen(told)
        await session.wait()
        session.pack()
        return session

    session = run_virtual(main())
    ear = session.runners["ear"].stage
    assert isinstance(ear, Ear)
    assert session.recorder is not None
    edges = [e for r in session.runners.values() for e in r.inputs]
    return Told(
        events=session.recorder.count,
        digest=session.recorder.digest,
        interruptions=interruptions,
        flushed=sum(e.lost["flushed"] for e in edges),
        played=ear.played,
        stale=ear.stale,
        unaccounted=sum(e.puts - e.taken - e.inlined - sum(e.lost.values()) for e in edges),
    )


HOUR = 3600 * SECOND
