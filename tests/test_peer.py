"""Whole connections over this machine's own network: media there and back, and every way to lose a client."""

import asyncio
import gc
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from client import GRAPHS, Client, Colour, Tone, serving, until, within
from penstock.pipeline.clock import MS, SECOND, ManualClock, MonotonicClock
from penstock.pipeline.compiler import load
from penstock.pipeline.session import Session
from penstock.transport import _compat, memory
from penstock.transport.ingress import DECODED, Mailbox
from penstock.transport.liveness import PROBE, SILENCE, Liveness
from penstock.transport.peer import Peer
from penstock.transport.server import Server
from penstock.transport.sessions import Sessions

pytestmark = pytest.mark.net


def test_loopback_returns_picture_sound_and_text():
    async def main() -> None:
        async with serving() as server:
            client = Client()
            client.pc.addTrack(Colour((200, 40, 40)))
            client.pc.addTrack(Tone())
            await client.connect(server.url)
            assert "a=setup:passive" in client.answer
            assert "a=setup:active" not in client.answer
            hello = await client.heard("hello")
            assert client.messages[0] is hello
            assert hello["graph"] == "loopback"

            picture: av.VideoFrame = await within(client.tracks["video"].recv())
            assert (picture.width, picture.height) == (640, 480)
            red = picture.to_ndarray(format="rgb24").mean(axis=(0, 1))
            assert np.allclose(red, (200, 40, 40), atol=12)

            loudest = 0
            for _ in range(100):
                sound: av.AudioFrame = await within(client.tracks["audio"].recv())
                loudest = max(loudest, int(np.abs(sound.to_ndarray()).max()))
            assert loudest > 4000

            client.say({"v": 1, "type": "chat", "text": "hello there"})
            text = await client.heard("text")
            assert (text["from"], text["text"]) == ("cam.text", "hello there")
            client.say({"v": 1, "type": "stats", "every_ms": 100})
            stats = await client.heard("stats", lambda m: m["nodes"][0]["frames"] > 0)
            assert {row["name"] for row in stats["nodes"]} == {"cam", "out"}
            client.say({"v": 1, "type": "params", "node": "cam", "values": {"nope": 1}})
            error = await client.heard("error")
            assert "'nope'" in error["message"]
            await client.pc.close()
            await until(lambda: not server.sessions.live)

    asyncio.run(main())


def test_a_client_that_only_talks_is_not_sent_media():
    async def main() -> None:
        async with serving() as server:
            client = Client()
            await client.connect(server.url)
            client.say({"v": 1, "type": "chat", "text": "no camera here"})
            assert (await client.heard("text"))["text"] == "no camera here"
            (live,) = server.sessions.live.values()
            assert live.peer is not None
            assert live.peer.tracks == {}
            assert live.peer.video_out is None
            await client.pc.close()
            await until(lambda: not server.sessions.live)

    asyncio.run(main())


def test_other_data_channels_are_closed():
    async def main() -> None:
        async with serving() as server:
            client = Client()
            other = client.pc.createDataChannel("other")
            closed = asyncio.Event()
            other.on("close", closed.set)
            await client.connect(server.url)
            await within(closed.wait())
            assert client.channel.readyState == "open"
            await client.pc.close()
            await until(lambda: not server.sessions.live)

    asyncio.run(main())


def go_silent(client: Any) -> None:
    """The client's machine is gone: its sockets neither send nor receive from now on."""

    def nothing(data: Any, addr: Any = None) -> None:
        return

    for transport in _compat.transports(client.pc):
        for protocol in transport.transport._connection._protocols:  # type: ignore[reportPrivateUsage]
            protocol.transport.sendto = nothing  # type: ignore[method-assign]
            protocol.datagram_received = nothing  # type: ignore[method-assign]


def test_a_vanished_client_is_noticed_within_three_seconds_and_others_stay():
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with serving() as server:
            gone, stays = Client(), Client()
            for client in (gone, stays):
                client.pc.addTrack(Tone())
                await client.connect(server.url)
                await within(client.tracks["audio"].recv())
            start = loop.time()
            go_silent(gone)
            await until(lambda: server.sessions.live[gone.session].state == "parked")
            assert 1 < loop.time() - start < 3.5
            assert server.sessions.live[stays.session].state == "connected"
            stays.say({"v": 1, "type": "ping", "id": 1})
            await stays.heard("pong")
            await gone.pc.close()
            await stays.pc.close()
            await until(lambda: stays.session not in server.sessions.live)

    asyncio.run(main())


def test_silence_ends_a_session_only_when_nobody_answers():
    now = 0
    liveness = Liveness(now)
    for step in range(1, 30):  # muted, but its network stack answers
        now = step * PROBE
        assert liveness.count(0, now)
        liveness.answered(now)
        assert not liveness.is_gone(now)
    assert not liveness.is_gone(now + SILENCE - 1)
    assert liveness.is_gone(now + SILENCE)
    assert SILENCE + PROBE + 500 * MS < 3 * SECOND
    assert not liveness.count(5, now + SILENCE), "packets count as a sign of life"
    assert not liveness.is_gone(now + SILENCE)


def test_a_muted_client_lives_on_consent_alone():
    async def main() -> None:
        async with serving() as server:
            client = Client()
            await client.connect(server.url)
            (live,) = server.sessions.live.values()
            assert await _compat.consents(live.peer._pc)  # type: ignore[reportPrivateUsage]
            go_silent(client)
            assert not await _compat.consents(live.peer._pc)  # type: ignore[reportPrivateUsage]
            await client.pc.close()

    asyncio.run(main())


def test_close_is_idempotent_and_bounded_at_every_stage_of_life():
    async def main() -> None:
        loop = asyncio.get_running_loop()
        fresh = Peer("s-fresh", MonotonicClock())
        await asyncio.gather(fresh.close(), fresh.close())
        answered = Peer("s-answered", MonotonicClock())
        client = Client()
        client.pc.addTrack(Colour())
        await answered.accept(await client.offer())  # the client never connects
        start = loop.time()
        await asyncio.gather(answered.close(), answered.close())
        await answered.close()
        assert loop.time() - start < 2
        assert answered.gone == "closed"
        await client.pc.close()

    asyncio.run(main())


def test_undrained_track_keeps_only_the_newest_frames():
    async def main() -> None:
        async with serving() as server:
            client = Client()
            client.pc.addTrack(Tone())
            await client.connect(server.url)
            track = client.tracks["audio"]  # the same bounded track, read by nobody
            await until(lambda: track.decoded.dropped > 5)
            assert track.decoded.qsize() == DECODED["audio"]
            await client.pc.close()
            await until(lambda: not server.sessions.live)

    asyncio.run(main())


def test_mailbox_drops_the_oldest_and_keeps_the_end():
    box = Mailbox(3)
    for item in (1, 2, 3, 4):
        box.put_nowait(item)
    assert box.dropped == 1
    box.put_nowait(None)
    box.put_nowait(5)
    taken = [box.get_nowait() for _ in range(box.qsize())]
    assert taken == [4, None, 5] or taken[-1] is None
    assert None in taken


def test_accept_refuses_what_it_cannot_answer():
    async def main() -> None:
        peer = Peer("s-test", ManualClock())
        with pytest.raises(ValueError, match="v=0"):
            await peer.accept("garbage")
        await peer.close()

    asyncio.run(main())


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


async def churn(sessions: int) -> dict[str, float]:
    """Connect and disconnect with media, `sessions` times after a warm-up: what is left over."""

    def workers() -> int:  # the loop's own executor keeps its few threads
        return sum(not t.name.startswith("asyncio_") for t in threading.enumerate())

    async def once(url: str) -> None:
        client = Client()
        client.pc.addTrack(Colour())
        client.pc.addTrack(Tone())
        await client.connect(url)
        await within(client.tracks["video"].recv())
        await client.pc.close()

    async with serving() as server:
        alone = len(asyncio.all_tasks())  # the server's own go on

        async def settled() -> dict[str, float]:
            await until(lambda: not server.sessions.live)
            await until(lambda: len(asyncio.all_tasks()) <= alone)
            gc.collect()
            memory.give_back()
            return {"tasks": len(asyncio.all_tasks()), "threads": workers(), "mb": rss_bytes() / 1e6}

        for _ in range(40):  # codecs, executor threads, allocator
            await once(server.url)
        before = await settled()
        for _ in range(sessions):
            await once(server.url)
        after = await settled()
    return {key: after[key] - before[key] for key in after}


def alone(script: str, limit_s: float) -> bytes:
    """What a process of its own prints, which has to end well."""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        timeout=limit_s,
    )
    assert done.returncode == 0
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_fifty_connects_leave_no_task_no_thread_and_little_memory():
    # in a process of its own: what other tests have allocated must not blur the figure
    said = alone("import asyncio, json, test_peer; print(json.dumps(asyncio.run(test_peer.churn(50))))", 120)
    left = json.loads(said.splitlines()[-1])
    print(left)
    assert left["tasks"] == 0
    assert left["threads"] == 0
    assert left["mb"] < 5


async def walk_away() -> None:
    """A live session with media, and nothing of it closed."""
    graphs = {"loopback": load(GRAPHS / "loopback.yaml")}
    server = Server(Sessions(graphs, MonotonicClock(), Session), "127.0.0.1", 0)
    await server.start()
    client = Client()
    client.pc.addTrack(Colour())
    client.pc.addTrack(Tone())
    await client.connect(server.url)
    await within(client.tracks["video"].recv())


@pytest.mark.slow
def test_a_process_that_closes_nothing_still_ends():
    said = alone("import asyncio, test_peer; asyncio.run(test_peer.walk_away()); print('left')", 60)
    assert said == b"left\n"
