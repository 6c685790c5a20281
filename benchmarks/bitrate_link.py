"""Whole connections through a bad network, in real time: edge client → laboratory → server → a stage that reads.

Each question is about the moment it is asked in: it is answered from the first picture captured after it, or, ours, from
a still fetched for it, whichever comes first. Regions are oracle: where the display was on the picture that came last.
A picture's number is stamped into its lower left corner, so that what it showed is known. Accuracy is that of `bitrate_scene.py`. `plain`: uniform, ten pictures a second, no data channel of ours.
"""

from __future__ import annotations

import asyncio
import bisect
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from aiohttp import web
from bitrate_scene import H, Image, Shot, W, accuracy, luma, render
from penstock.pipeline import registry
from penstock.pipeline.clock import MS, SECOND, MonotonicClock
from penstock.pipeline.compiler import load
from penstock.pipeline.frame import Frame, VideoFrame
from penstock.pipeline.pixels import i420_from_rgb
from penstock.pipeline.session import Session
from penstock.pipeline.stage import In, Outputs, Ports, Stage
from penstock.pipeline.units import VideoFormat
from penstock.transport.allocator import SHARE
from penstock.transport.edge import EdgeEvents, EdgeOptions, EdgeSession, WayBack
from penstock.transport.importance import Box
from penstock.transport.netlab import Netlab
from penstock.transport.server import Server
from penstock.transport.sessions import Sessions
from report import percentile

GRAPH = """
penstock: 1
graph: {name}
nodes:
  cam: {{use: webrtc.in, video: 640x480@30}}
  eye: {{use: bench.eye, in: {{video: 'cam.video{thin}', still: cam.still}}}}
"""
FPS, SCENE_S = 10, 8
QUESTION_EVERY = 3 * SECOND
BLOCK, BITS = 16, 7
SURE = 0.7  # a picture that is read worse is not answered from while a still is on its way
STILL_PATIENCE = 1500 * MS
PATIENCE = 6 * SECOND  # a question that is not answered by then is answered wrongly


def stamped(shots: list[Shot]) -> list[Image]:
    """i420 pictures with their number in blocks of 16 pixels."""
    made: list[Image] = []
    for n, shot in enumerate(shots):
        rgb = shot.rgb.copy()
        for bit in range(BITS):
            rgb[H - BLOCK :, bit * BLOCK : (bit + 1) * BLOCK] = 255 if n >> bit & 1 else 0
        made.append(i420_from_rgb(rgb))
    return made


def number(gray: Image) -> int:
    row = gray[H - BLOCK + 4 : H - 4]
    return sum((row[:, b * BLOCK + 4 : (b + 1) * BLOCK - 4].mean() > 128) << b for b in range(BITS))


@dataclass
class Client:
    """One client's scene, and what became of its questions."""

    name: str
    shots: list[Shot]
    pictures: list[Image]
    box: bool  # tell where the display is, with each picture that is read
    fetch: bool
    asked: int | None = None  # when, ns
    answers: list[tuple[float, float, str]] = field(default_factory=list)  # (s, accuracy, from)
    ages: list[float] = field(default_factory=list)  # s, of the pictures when they were read
    scores: list[float] = field(default_factory=list)
    captured: list[int] = field(default_factory=list)  # when each picture was, ns

    def number(self, gray: Image, pts: int) -> int:
        """Of the picture: as it is stamped, where that can be read and agrees with its time."""
        by_time = max(0, bisect.bisect_right(self.captured, pts) - 1)
        stamp = number(gray)
        near = next(
            (by_time + d for d in (0, -1, -2, 1, -3) if (by_time + d) % len(self.shots) == stamp), by_time
        )
        return near % len(self.shots)


_waiting: list[Client] = []


class Eye(Stage):
    """Reads each picture that it is given; emits where the display was, and how well it could read."""

    ports = Ports({"video": In(VideoFrame), "still": In(VideoFrame)}, {})

    async def setup(self) -> None:
        self.client = _waiting.pop(0)
        EYES[self.client.name] = self

    async def process(self, port: str, frame: Frame, out: Outputs) -> None:
        assert isinstance(frame, VideoFrame)
        client, now = self.client, self.ctx.clock.now()
        if port == "still":
            at = self.expected + round((frame.pts - (client.asked or frame.pts)) * FPS / SECOND)
            score = await self.ctx.pool().call(score_still, frame, self.fetched, client.shots, at)
            self.answer(score, "still", now)
            return
        score, shot = await self.ctx.pool().call(_score, frame, client)
        client.ages.append((now - frame.pts) / SECOND)
        client.scores.append(score)
        waits = (
            client.fetch and score < SURE and client.asked is not None and now - client.asked < STILL_PATIENCE
        )
        if client.asked is not None and frame.pts >= client.asked and not waits:
            self.answer(score, "video", now)
        self.ctx.emit("answered", kind="read", confidence=score)
        if client.box:
            self.ctx.emit("importance", boxes=[shot.box], confidence=0.9, ttl_ms=1500, source="boxes")
        self.box = shot.box

    expected = 0
    box: Box | None = None
    fetched: Box = (0.0, 0.0, 1.0, 1.0)

    def ask(self, shown: int) -> None:
        """shown: the number of the picture in front of the camera now."""
        self.client.asked, self.expected = self.ctx.clock.now(), shown
        if self.client.fetch and self.box is not None:
            x, y, w, h = self.box
            self.fetched = (x - 0.03, y - 0.03, w + 0.06, h + 0.06)
            self.ctx.emit("fetch", box=self.fetched)

    def answer(self, score: float, source: str, now: int) -> None:
        if self.client.asked is not None:
            self.client.answers.append(((now - self.client.asked) / SECOND, score, source))
            self.client.asked = None


EYES: dict[str, Eye] = {}


def _score(frame: VideoFrame, client: Client) -> tuple[float, Shot]:
    gray = luma(frame.image)
    shot = client.shots[client.number(gray, frame.pts)]
    return accuracy(gray, shot), shot


def score_still(frame: VideoFrame, box: Box, shots: list[Shot], at: int) -> float:
    """The still lies where its box is. at: the picture that was in front of the camera by its time, give or take one."""
    gray = luma(frame.image)
    x, y = int(max(0.0, box[0]) * W) & ~1, int(max(0.0, box[1]) * H) & ~1
    whole = np.full((H, W), 128, np.uint8)
    whole[y : y + gray.shape[0], x : x + gray.shape[1]] = gray[: H - y, : W - x]
    return max(accuracy(whole, shots[(at + d) % len(shots)]) for d in (-1, 0, 1))


async def _feed(session: EdgeSession, client: Client, clock: MonotonicClock, until: int) -> None:
    start, n, asked = clock.now(), 0, 1
    while (now := clock.now()) < until:
        image = client.pictures[n % len(client.pictures)]
        client.captured.append(now)
        session.sender.picture(VideoFrame(pts=now, image=image, format="i420"))
        eye = EYES.get(client.name)
        if eye is not None and now - start > asked * QUESTION_EVERY and n % FPS == FPS // 2:
            if client.asked is not None:
                client.answers.append((PATIENCE / SECOND, 0.0, "none"))
            asked += 1
            eye.ask(n % len(client.pictures))
        n += 1
        await clock.sleep(max(0, start + n * SECOND // FPS - clock.now()))


async def run(
    clients: list[Client],
    network: dict[str, Any],
    seconds: float,
    *,
    plain: bool = False,
    uplink_bps: int = 0,
    equal: bool = False,
    seed: int = 0,
) -> None:
    """Fills in the clients' answers. equal: the budget is divided evenly instead of by worth."""
    clock = MonotonicClock()
    registry.EXTRA["bench.eye"] = Eye
    EYES.clear()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "eye.yaml"
        path.write_text(GRAPH.format(name="eye", thin="" if plain else "|every(500ms)"))
        plan = load(path)
    server = Server(Sessions({"eye": plan}, clock, Session), "127.0.0.1", 0, uplink_bps=uplink_bps)
    if equal:
        share = uplink_bps * SHARE / len(clients)
        server.budgets.up.step = lambda now: [  # type: ignore[method-assign]
            setattr(live.focus.worth, "kbps", round(share / 1000)) for live in server.sessions.live.values()
        ]
    await server.start()
    lab = Netlab(server.url, network, clock, seed=seed, shared=True)
    runner = web.AppRunner(lab.app(), access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    sessions: list[EdgeSession] = []
    try:
        async with aiohttp.ClientSession() as http:
            for client in clients:
                _waiting.append(client)
                options = EdgeOptions(url=url, form=VideoFormat(W, H, FPS))
                session = EdgeSession(options, clock, EdgeEvents(), WayBack())
                if plain:
                    session.rt.remove_all_listeners("message")
                sessions.append(session)
                await session.open(http)
            until = clock.now() + round(seconds * SECOND)
            async with asyncio.TaskGroup() as group:
                told = [group.create_task(s.run()) for s in sessions]
                for session, client in zip(sessions, clients, strict=True):
                    group.create_task(_feed(session, client, clock, until))
                await clock.sleep(round(seconds * SECOND) + 500 * MS)
                for task in told:
                    task.cancel()
    finally:
        for session in sessions:
            await session.close()
        await server.stop()
        await runner.cleanup()


def client(name: str, scene: str, seed: int, *, ours: bool, fetch: bool = False) -> Client:
    shots = render(scene, seed, FPS, SCENE_S)
    return Client(name, shots, stamped(shots), box=ours, fetch=fetch)


def figures(clients: list[Client]) -> dict[str, Any]:
    answers = [a for c in clients for a in c.answers]
    means = [float(np.mean([a for _, a, _ in c.answers])) for c in clients if c.answers]
    ages = [age for c in clients for age in c.ages]
    times = [t for t, _, _ in answers]
    return {
        "questions": len(answers),
        "accuracy": round(float(np.mean([a for _, a, _ in answers])), 3) if answers else None,
        "answer_s_p50": round(percentile(times, 0.5), 2) if times else None,
        "answer_s_p95": round(percentile(times, 0.95), 2) if times else None,
        "by_still": sum(s == "still" for _, _, s in answers),
        "picture_age_s_p95": round(percentile(ages, 0.95), 2) if ages else None,
        "pictures_accuracy": round(float(np.mean([s for c in clients for s in c.scores])), 3),
        "fairness": round(min(means) / float(np.mean(means)), 2) if means and np.mean(means) else None,
    }


def settled(clients: list[Client]) -> float:
    """Mean accuracy of the pictures in the last two thirds: what holds once the link is shared out."""
    return round(float(np.mean([s for c in clients for s in c.scores[len(c.scores) // 3 :]])), 3)


def fresh(clients: list[Client]) -> list[Client]:
    return [replace(c, answers=[], ages=[], scores=[], captured=[], asked=None) for c in clients]
