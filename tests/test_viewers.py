"""One output, many viewers, over real connections (WHEP)."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiortc import RTCSessionDescription
from client import Client, Colour, Tone, serving, until, within
from graphs import compile_test
from numpy.typing import NDArray
from penstock.pipeline.clock import SECOND
from penstock.transport import broadcast, encoded_audio
from penstock.transport.broadcast import SharedRung
from penstock.transport.opus_encoder import OpusEncoder
from penstock.transport.remote import Remote

SDP = {"Content-Type": "application/sdp"}
CAMERA = """
penstock: 1
graph: camera
nodes:
  cam: {use: synthetic.in, video: 320x240@20}
  out: {use: webrtc.out, in: {video: cam.video, audio: cam.audio}}
"""


async def watch(url: str, path: str) -> tuple[Client, str]:
    client = Client()
    for kind in ("audio", "video"):
        client.pc.addTransceiver(kind, direction="recvonly")
    offer = await client.offer()
    async with aiohttp.ClientSession(url) as http, http.post(path, data=offer, headers=SDP) as r:
        assert r.status == 201, await r.text()
        location, answer = r.headers["Location"], await r.text()
    await client.pc.setRemoteDescription(RTCSessionDescription(answer, "answer"))
    return client, location


@pytest.mark.net
def test_viewers_of_a_started_graph_share_its_encoders_and_its_sound(monkeypatch: pytest.MonkeyPatch):
    sounds: list[Counted] = []
    rungs: list[SharedRung] = []

    class Counted(OpusEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.made = 0
            sounds.append(self)

        def encode(self, pcm: NDArray[np.int16]) -> bytes:
            self.made += 1
            return super().encode(pcm)

    class Kept(SharedRung):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            rungs.append(self)

    monkeypatch.setattr(broadcast, "OpusEncoder", Counted)
    monkeypatch.setattr(encoded_audio, "OpusEncoder", Counted)
    monkeypatch.setattr(broadcast, "SharedRung", Kept)

    async def main() -> None:
        async with serving({"camera": compile_test(CAMERA)}) as server:
            live = await server.desk.start("camera")
            clients = [await watch(server.url, "/whep/camera") for _ in range(3)]
            assert len(server.viewers.live) == 3
            async with Remote(server.url) as top:
                snapshot = await top.snapshot()
            assert [s["viewers"] for s in snapshot["sessions"]] == [3] == [snapshot["server"]["viewers"]]
            assert not server.sessions.live, "no copy of the graph was started"
            for client, _ in clients:
                for kind in ("video", "audio"):
                    frame = await within(client.tracks[kind].recv())
                    if kind == "video":
                        assert frame.height <= 240
                        bars = frame.to_ndarray(format="rgb24")[20, :, :]
                        assert bars.std() > 30, "a picture of the graph's"
            assert len(sounds) == 1
            shared = live.stats()["transport"]["shared"]
            assert sum(row["viewers"] for row in shared) == 3
            before = {rung: rung.encoded for rung in rungs}
            sounds_before = sounds[0].made
            shown = clients[0][0].pc.getReceivers()
            assert shown
            began = asyncio.get_running_loop().time()
            await asyncio.sleep(1.5)
            took = asyncio.get_running_loop().time() - began
            made = {rung: rung.encoded - before.get(rung, 0) for rung in rungs}
            # at most one encode of each picture for each rung that was in use meanwhile, whatever the number of viewers
            in_use = len({rung.number for rung, count in made.items() if count})
            assert 0 < sum(made.values()) <= took * 20 * in_use * 1.5
            assert 0 < sounds[0].made - sounds_before <= took * 50 * 1.5
            # one of them ends; the others go on
            async with aiohttp.ClientSession(server.url) as http:
                async with http.delete(clients[0][1]) as r:
                    assert r.status == 200
                await until(lambda: len(server.viewers.live) == 2)
                async with http.delete(clients[0][1]) as r:
                    assert r.status == 404
            await within(clients[1][0].tracks["video"].recv())
            await live.close("over")
            await until(lambda: not server.viewers.live)
            again = server.desk.sessions.clock.now() + 30 * SECOND
            server.desk.headless.kept = {"camera": again}  # as one that starts again by itself
            offer = clients[0][0].pc.localDescription.sdp
            async with (
                aiohttp.ClientSession(server.url) as http,
                http.post("/whep/camera", data=offer, headers=SDP) as r,
            ):
                assert r.status == 503
                assert 20 <= int(r.headers["Retry-After"]) <= 30
            for client, _ in clients:
                await client.pc.close()

    asyncio.run(main())


@pytest.mark.net
def test_a_graph_that_sends_nothing_is_not_to_be_tried_again():
    async def main() -> None:
        nodes = "  cam: {use: test.audio, frames: 100000}\n  out: {use: test.sink, in: cam.audio}\n"
        graph = "penstock: 1\ngraph: nout\nnodes:\n" + nodes
        async with (
            serving({"nout": compile_test(graph)}) as server,
            aiohttp.ClientSession(server.url) as http,
        ):
            server.desk.headless.kept = {"nout": 0}
            await server.desk.start("nout")
            client = Client()
            client.pc.addTransceiver("video", direction="recvonly")
            async with http.post("/whep/nout", data=await client.offer(), headers=SDP) as r:
                assert r.status == 400
                assert "the graph has no webrtc.out" in await r.text()
            await client.pc.close()

    asyncio.run(main())


@pytest.mark.net
def test_a_clients_session_can_be_watched():
    async def main() -> None:
        async with serving(viewers=1) as server, aiohttp.ClientSession(server.url) as http:
            owner = Client()
            owner.pc.addTrack(Tone())
            owner.pc.addTrack(Colour())
            await owner.connect(server.url)
            await within(owner.tracks["video"].recv())
            viewer, location = await watch(server.url, f"/whep/loopback/{owner.session}")
            assert location.startswith("/whep/loopback/v-")
            red = await within(viewer.tracks["video"].recv())
            assert red.to_ndarray(format="rgb24").mean(axis=(0, 1))[0] > 120
            async with asyncio.timeout(10):
                while np.abs((await viewer.tracks["audio"].recv()).to_ndarray()).max() < 1000:
                    pass
            # limits and faults, in words
            other = Client()
            offer = await other.offer()
            for path, status in (
                (f"/whep/loopback/{owner.session}", 503),  # viewers=1
                ("/whep/loopback/s-none", 404),
                (f"/whep/other/{owner.session}", 404),
            ):
                async with http.post(path, data=offer, headers=SDP) as r:
                    assert r.status == status, await r.text()
            async with http.post(f"/whep/loopback/{owner.session}", data="v=0", headers=SDP) as r:
                assert r.status == 400
            await server.sessions.close(owner.session, "over")
            await until(lambda: not server.viewers.live)
            await owner.pc.close()
            await viewer.pc.close()
            await other.pc.close()

    asyncio.run(main())
