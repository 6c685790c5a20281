"""A client that lost its connection comes back over another one: the graph, its state and its words are there."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiortc import RTCSessionDescription
from client import Client, Colour, Tone, serving, until, within
from hypothesis import given
from hypothesis import strategies as st
from penstock.pipeline.clock import MS, SECOND, LoopClock
from penstock.pipeline.frame import AudioFrame, TokenFrame
from penstock.pipeline.virtual_loop import run_virtual
from penstock.transport import datachannel
from penstock.transport.audio_out import AudioOut
from penstock.transport.line import PATIENCE, Line
from penstock.transport.transcript import Transcript
from test_peer import go_silent


async def come_back(
    url: str, old: Client, after: int = 0, *, status: int = 200, media: bool = False
) -> tuple[Client, dict[str, Any]]:
    """A new connection with the resume token of `old`'s hello."""
    token = (await old.heard("hello"))["resume"]
    client = Client()
    if media:
        client.pc.addTrack(Colour((30, 30, 220)))
        client.pc.addTrack(Tone())
    body = {"sdp": await client.offer(), "resume": token, "after": after}
    async with aiohttp.ClientSession() as http, http.post(f"{url}/session", json=body) as response:
        answer = await response.json()
        assert response.status == status, answer
    if status != 200:
        await client.pc.close()
    else:
        client.session = answer["session"]
        await client.pc.setRemoteDescription(RTCSessionDescription(answer["sdp"], "answer"))
        await within(client.opened.wait())
    return client, answer


@pytest.mark.net
def test_a_vanished_client_is_parked_in_three_seconds_and_goes_on_over_another_connection():
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with serving() as server:
            first = Client()
            first.pc.addTrack(Colour((200, 40, 40)))
            first.pc.addTrack(Tone())
            await first.connect(server.url)
            await within(first.tracks["video"].recv())
            first.say({"v": 1, "type": "chat", "text": "before"})
            seen = await first.heard("text")
            live = server.sessions.live[first.session]
            graph = live.session
            start = loop.time()
            go_silent(first)
            await until(lambda: live.state == "parked")
            assert loop.time() - start < 3.5
            assert graph.runners["out"].state == "running"
            live.channel.text("asr.commit", "commit", _words("meanwhile"))
            second, answer = await come_back(server.url, first, seen["n"], media=True)
            assert answer["resumed"] is True
            assert second.session == first.session
            hello = await second.heard("hello")
            assert (hello["resumed"], hello["missed"]) == (True, 0)
            assert (await second.heard("text"))["text"] == "meanwhile", "not what was seen before"
            assert live.session is graph
            for _ in range(40):  # the new picture, through the graph that was there
                picture = await within(second.tracks["video"].recv())
                if np.allclose(picture.to_ndarray(format="rgb24").mean(axis=(0, 1)), (30, 30, 220), atol=14):
                    break
            else:
                pytest.fail("the new camera's picture did not come")
            loud = 0
            for _ in range(100):
                loud = max(
                    loud, int(np.abs((await within(second.tracks["audio"].recv())).to_ndarray()).max())
                )
            assert loud > 4000
            second.say({"v": 1, "type": "chat", "text": "after"})
            await second.heard("text", lambda m: m["text"] == "after")
            assert live.stats()["transport"]["resumes"] == 1
            await first.pc.close()
            await second.pc.close()
            await until(lambda: not server.sessions.live)

    asyncio.run(main())


def _words(text: str) -> TokenFrame:
    return TokenFrame(pts=0, text=text, end=True, utterance=1)


@pytest.mark.net
def test_a_client_may_come_back_before_its_loss_is_noticed():
    async def main() -> None:
        async with serving() as server:
            first = Client()
            await first.connect(server.url)
            second, _ = await come_back(server.url, first)
            (live,) = server.sessions.live.values()
            assert live.state == "connected"
            second.say({"v": 1, "type": "ping", "id": 1})
            await second.heard("pong")
            await until(lambda: first.pc.connectionState == "closed")
            assert list(server.sessions.live) == [second.session], "the old one's end ends nothing"
            await second.pc.close()
            await until(lambda: not server.sessions.live)

    asyncio.run(main())


@pytest.mark.net
def test_who_does_not_come_back_in_time_or_says_goodbye_is_gone_for_good():
    async def main() -> None:
        async with serving(resume=SECOND // 2) as server:
            lost, left = Client(), Client()
            for client in (lost, left):
                await client.connect(server.url)
            await left.pc.close()
            await until(lambda: left.session not in server.sessions.live)
            go_silent(lost)
            await until(lambda: not server.sessions.live)
            await come_back(server.url, lost, status=410)
            await lost.pc.close()

    asyncio.run(main())


@pytest.mark.net
def test_without_resuming_a_lost_client_is_gone_at_once():
    async def main() -> None:
        async with serving(resume=0) as server:
            client = Client()
            await client.connect(server.url)
            assert "resume" not in await client.heard("hello")
            go_silent(client)
            await until(lambda: not server.sessions.live)
            await client.pc.close()

    asyncio.run(main())


@pytest.mark.net
def test_a_reload_is_waited_for_and_a_bad_offer_to_resume_changes_nothing():
    async def main() -> None:
        async with serving() as server, aiohttp.ClientSession(server.url) as http:
            first = Client()
            await first.connect(server.url)
            first.say({"v": 1, "type": "chat", "text": "hello"})
            await first.heard("text")
            token = (await first.heard("hello"))["resume"]
            async with http.post("/session", json={"sdp": "v=0\r\nnonsense", "resume": token}) as response:
                assert response.status == 400
            (live,) = server.sessions.live.values()
            assert live.state == "connected"
            async with http.post(f"/session/{first.session}/reload") as response:
                assert response.status == 200
            await first.pc.close()
            await until(lambda: live.state == "parked")
            second, _ = await come_back(server.url, first)
            await second.heard("text")
            kinds = [(m["type"], m["text"]) for m in second.messages if m["type"] in ("chat", "text")]
            assert kinds == [("chat", "hello"), ("text", "hello")]
            async with http.delete(f"/session/{second.session}") as response:
                assert response.status == 200
            await until(lambda: not server.sessions.live)
            await second.pc.close()

    asyncio.run(main())


@pytest.mark.net
def test_parked_sessions_give_way_to_new_ones():
    async def main() -> None:
        async with serving(per_client=1) as server:
            first, second = Client(), Client()
            await first.connect(server.url)
            go_silent(first)
            live = server.sessions.live[first.session]
            await until(lambda: live.state == "parked")
            await second.connect(server.url)
            assert list(server.sessions.live) == [second.session]
            await come_back(server.url, first, status=410)
            await first.pc.close()
            await second.pc.close()

    asyncio.run(main())


@pytest.mark.net
def test_a_session_ends_when_its_longest_time_is_over():
    async def main() -> None:
        async with serving(longest=SECOND) as server:
            client = Client()
            await client.connect(server.url)
            error = await client.heard("error", lambda m: m["about"] == "session")
            assert "longest time" in error["message"]
            await until(lambda: not server.sessions.live)
            await client.pc.close()

    asyncio.run(main())


@pytest.mark.net
def test_a_client_that_talks_nonsense_is_told_and_may_not_come_back(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datachannel, "MAX_ERRORS", 20)  # more would be a burst

    async def main() -> None:
        async with serving() as server:
            client = Client()
            await client.connect(server.url)
            await client.heard("hello")
            for _ in range(30):
                client.channel.send("{")
            error = await client.heard("error", lambda m: m["about"] == "session")
            assert "its client sent 20 messages that could not be taken" in error["message"]
            await until(lambda: not server.sessions.live)
            await come_back(server.url, client, status=410)
            await client.pc.close()

    asyncio.run(main())


# ---------------------------------------------------------------- without sockets


def sound(ms: int, value: int = 1000) -> AudioFrame:
    return AudioFrame(pts=0, pcm=np.full((48 * ms, 1), value, np.int16), rate_hz=48_000)


class FakePeer:
    name = "s-fake"

    def __init__(self, clock: Any) -> None:
        self.tracks: dict[str, Any] = {}
        self.video_out = None
        self.audio_out: AudioOut | None = AudioOut(clock)


def test_speech_waits_for_a_client_that_comes_back_and_is_not_lost():
    async def main() -> None:
        clock = LoopClock(asyncio.get_running_loop())
        first, second = FakePeer(clock), FakePeer(clock)
        line = Line(clock)
        line.attach(first)  # type: ignore[arg-type]
        assert line.audio_out is not None
        writing = asyncio.create_task(line.audio_out.write(sound(200)))
        await asyncio.sleep(0.1)
        line.detach()
        await asyncio.wait_for(writing, 1)
        held = line.audio_out
        assert held is not None
        assert held.buffered == 200 * MS
        more = asyncio.create_task(held.write(sound(100, 500)))
        await asyncio.sleep(1)
        assert not more.done(), "it waits"
        line.attach(second)  # type: ignore[arg-type]
        await asyncio.wait_for(more, 1)
        out = second.audio_out
        assert out is not None
        heard = np.concatenate([(await out.pull())[0] for _ in range(15)])
        assert heard[: 200 * 48].min() == 1000
        assert heard[200 * 48 :].max() == 500
        line.close()

    run_virtual(main())


def test_speech_for_nobody_goes_on_at_its_own_pace_after_a_while():
    async def main() -> None:
        clock = LoopClock(asyncio.get_running_loop())
        line = Line(clock)
        line.attach(FakePeer(clock))  # type: ignore[arg-type]
        line.detach()
        start = clock.now()
        for _ in range(50):
            assert line.audio_out is not None
            await line.audio_out.write(sound(100))
        assert PATIENCE + 4 * SECOND < clock.now() - start < PATIENCE + 6 * SECOND
        line.close()
        assert line.audio_out is not None or line.peer is None

    run_virtual(main())


def test_a_transcript_is_bounded_and_merges_what_streams():
    transcript = Transcript(lines=4, size=10_000)
    reply = {"from": "agent.say", "kind": "delta", "utterance": 1, "end": False}
    for k in range(3):
        transcript.add("text", reply | {"text": f"w{k} ", "end": k == 2})
    transcript.add("chat", {"text": "hi"})
    found = list(transcript.since(0))
    assert [(kind, f["text"], f["n"]) for kind, f in found] == [("text", "w0 w1 w2 ", 3), ("chat", "hi", 4)]
    assert found[0][1]["end"] is True
    assert list(transcript.since(4)) == []
    assert transcript.missed(0) == 0
    assert [f["text"] for _, f in transcript.since(1)] == ["w1 w2 ", "hi"]
    for k in range(6):
        transcript.add("chat", {"text": "x" * (3000 if k == 5 else 1)})
    assert len(list(transcript.since(0))) <= 4
    assert transcript.missed(2) == 10 - 2 - len(list(transcript.since(0)))
    transcript.add("chat", {"text": "y" * 20_000})
    assert list(transcript.since(0)) == [], "one that is too large pushes out all"
    assert transcript.missed(0) == 11


@given(
    st.lists(
        st.tuples(st.sampled_from(["chat", "commit", "a", "b"]), st.text(max_size=40)),
        max_size=60,
    ),
    st.integers(0, 70),
)
def test_what_was_missed_and_what_is_told_again_is_all_there_was(said: list[tuple[str, str]], after: int):
    transcript = Transcript(lines=20, size=4000)
    for how, text in said:
        if how == "chat":
            transcript.add("chat", {"text": text})
        else:
            kind = "commit" if how == "commit" else "delta"
            transcript.add("text", {"from": how, "kind": kind, "utterance": 1, "text": text, "end": False})
    told = list(transcript.since(after))
    missed = transcript.missed(after)
    rest = said[min(after + missed, len(said)) :]
    assert "".join(fields["text"] for _, fields in told) == "".join(text for _, text in rest)
    numbers = [fields["n"] for _, fields in told]
    assert numbers == sorted(set(numbers))
    assert not rest or numbers[-1] == len(said)
