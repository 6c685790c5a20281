"""The voice of a speech endpoint, against a server that speaks the real wire format and breaks it in all ways."""

from __future__ import annotations

import asyncio
import io
import logging
import struct
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import av
import numpy as np
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from penstock.models import voices
from penstock.models.voice import NoVoice
from penstock.pipeline.clock import MS, SECOND, ManualClock
from penstock.pipeline.frame import TokenFrame
from penstock.pipeline.session import Session
from penstock.pipeline.stage import Flush, SetParams, StageError
from penstock.stages.speech_sound import BadSound, Format, Sound
from penstock.stages.tts import StreamTts
from pydantic import ValidationError

from .chat_server import DONE, Script, Server, delta, drops, sends, serving, stalls
from .fakes import Collected, FakeContext, feed
from .graphs import compile_test, run_session, sink_of

net = pytest.mark.net
RATE = 24_000
SENTENCE = "One two three four five six."


def tone(seconds: float, rate_hz: int = RATE) -> NDArray[np.int16]:
    return (8000 * np.sin(np.arange(round(seconds * rate_hz)) * 2 * np.pi * 440 / rate_hz)).astype(np.int16)


def wav(pcm: NDArray[np.int16], rate_hz: int, channels: int = 1, extra: bytes = b"") -> bytes:
    """As servers stream it: sizes unknown."""
    fmt = struct.pack("<HHIIHH", 1, channels, rate_hz, rate_hz * 2 * channels, 2 * channels, 16)
    head = b"WAVEfmt " + struct.pack("<I", 16) + fmt + extra + b"data\xff\xff\xff\xff"
    return b"RIFF\xff\xff\xff\xff" + head + pcm.tobytes()


def encoded(container: str, codec: str, pcm: NDArray[np.int16], rate_hz: int) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream: Any = out.add_stream(codec, rate=rate_hz, layout="mono")
        frame = av.AudioFrame.from_ndarray(pcm[None, :], format="s16", layout="mono")
        frame.sample_rate = rate_hz
        for f in [*av.AudioResampler(format=stream.format, rate=rate_hz).resample(frame), None]:
            out.mux(stream.encode(f))
    return file.getvalue()


def decoded(data: bytes, format: Format, sizes: list[int]) -> tuple[NDArray[np.int16], int]:
    """Fed in pieces of these sizes, again and again."""
    sound, at, parts, turn = Sound(format, RATE), 0, list[NDArray[np.int16]](), 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        parts.append(sound.feed(data[at : at + size]))
        at, turn = at + size, turn + 1
    parts.append(sound.finish())
    return np.concatenate(parts), sound.rate_hz


MP3 = encoded("mp3", "libmp3lame", tone(1.0), RATE)
OPUS = encoded("ogg", "libopus", tone(1.0, 48_000), 48_000)


@pytest.mark.parametrize(
    ("data", "format"),
    [
        (tone(0.3).tobytes(), "pcm"),
        (wav(tone(0.3), RATE, extra=b"LIST" + struct.pack("<I", 3) + b"abc\0"), "wav"),
        (wav(tone(0.3), RATE), "pcm"),  # another than was asked for
        (MP3, "mp3"),
        (OPUS, "opus"),
    ],
    ids=["pcm", "wav", "wav for pcm", "mp3", "opus"],
)
@given(sizes=st.lists(st.integers(1, 700), min_size=1, max_size=5))
@settings(max_examples=15, deadline=None)
def test_sound_is_the_same_however_its_bytes_are_cut(data: bytes, format: Format, sizes: list[int]) -> None:
    whole, _ = decoded(data, format, [len(data)])
    cut, _ = decoded(data, format, sizes)
    assert np.array_equal(whole, cut)
    assert len(whole) > 0


@pytest.mark.parametrize(("data", "format"), [(MP3, "mp3"), (OPUS, "opus")])
def test_compressed_sound_has_its_length_pitch_and_level(data: bytes, format: Format) -> None:
    pcm, rate_hz = decoded(data, format, [4096])
    assert 1.0 <= len(pcm) / rate_hz < 1.12  # an mp3 begins and ends with some silence of its coder
    middle = pcm[rate_hz // 4 : rate_hz * 3 // 4].astype(float)
    peak = np.argmax(np.abs(np.fft.rfft(middle * np.hanning(len(middle)))))
    assert peak * rate_hz / len(middle) == pytest.approx(440, abs=4)
    assert np.sqrt((middle**2).mean()) == pytest.approx(8000 / np.sqrt(2), rel=0.1)


def test_a_wav_says_its_rate_and_is_mixed_down() -> None:
    pcm, rate_hz = decoded(wav(np.repeat(tone(0.1, 16_000), 2), 16_000, channels=2), "wav", [5])
    assert rate_hz == 16_000
    assert np.array_equal(pcm, tone(0.1, 16_000))


@pytest.mark.parametrize(
    ("data", "format", "words"),
    [
        (b"\x00\x01\x02\x03", "wav", "no wav"),
        (b"\x00\x01\x02\x03", "mp3", "no mp3"),
        (b"RIFF0000AVI LIST", "wav", "no wav"),
        (wav(tone(0.1), 400), "wav", "400 Hz"),
        (b"RIFF0000WAVEdata0000", "wav", "does not say its format"),
        (b"RIFF0000WAVE", "wav", "ended in its header"),
        (b"RIFF0000WAVE" + b"junk\x00\x00\x10\x00" + bytes(2**20), "wav", "no sound in its first"),
        (b"OggS\0" + bytes(21) + b"\x01\x03abc" + bytes(100), "opus", "no Opus"),
        (OPUS + bytes(200), "opus", "begins otherwise"),
        (b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f" + bytes(100), "mp3", "a tag of"),
    ],
)
def test_garbage_is_named(data: bytes, format: Format, words: str) -> None:
    with pytest.raises(BadSound, match=words):
        decoded(data, format, [64])


@given(
    st.binary(max_size=3000),
    st.sampled_from([b"RIFF", b"OggS\0", b"ID3", b"\xff\xfb", b"", wav(tone(0), RATE)]),
)
@settings(max_examples=150, deadline=None)
def test_no_bytes_bring_more_than_a_clear_error(data: bytes, head: bytes) -> None:
    for format in ("pcm", "mp3"):
        try:
            decoded(head + data, format, [500])
        except BadSound as e:
            assert str(e)


class Heard(Collected):
    """Outputs that tell when there is sound."""

    def __init__(self) -> None:
        super().__init__()
        self.some = asyncio.Event()

    async def send(self, port: str, frame: Any) -> None:
        await super().send(port, frame)
        self.some.set()


class Talk:
    """A stage, its server, and what came out."""

    def __init__(self, stage: StreamTts, ctx: FakeContext, server: Server, clock: ManualClock) -> None:
        self.stage, self.ctx, self.server, self.clock = stage, ctx, server, clock
        self.out = Heard()

    async def say(self, text: str, *, end: bool = True, utterance: int = 1) -> None:
        frame = TokenFrame(pts=SECOND, text=text, utterance=utterance, end=end, epoch=self.ctx.epoch)
        await feed(self.stage, "text", frame, self.out)

    async def flush(self) -> None:
        self.ctx.epoch += 1
        self.out.epoch = self.ctx.epoch
        await self.stage.control(Flush("reply", self.ctx.epoch))

    def words(self) -> str:
        return "".join(f.text for f in self.out.of("audio"))

    def seconds(self, rate_hz: int = RATE) -> float:
        """Of the endpoint's sound: its rate is no embedded voice's."""
        return sum(len(f.pcm) for f in self.out.of("audio") if f.rate_hz == rate_hz) / rate_hz

    def failures(self) -> list[dict[str, object]]:
        return [fields for name, fields in self.ctx.events if name == "tts_failed"]


def talk(
    scene: Callable[[Talk], Awaitable[None]],
    *scripts: Script | web.Response,
    content_type: str = "audio/pcm",
    realtime: bool = True,
    **options: Any,
) -> Talk:
    """Play a scene with a stage whose voice is a server of these scripts."""

    async def play() -> Talk:
        async with serving(*scripts, content_type=content_type) as (server, url):
            base: dict[str, Any] = {"base_url": url, "model": "m", "voice": "v", "fallback": False}
            stage = StreamTts(StreamTts.Options.model_validate({"endpoint": base | options}))
            clock = ManualClock()
            ctx = FakeContext(clock, realtime=realtime)
            stage.ctx = ctx
            await stage.setup()
            it = Talk(stage, ctx, server, clock)
            try:
                async with asyncio.timeout(20):
                    await scene(it)
            finally:
                await stage.close()
            return it

    return asyncio.run(play())


async def until(fact: Callable[[], bool]) -> None:
    """For what no event tells; `talk` limits the time."""
    while not fact():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


def embedded() -> None:
    try:
        voices.load("auto")
    except NoVoice as e:
        pytest.skip(str(e))


def speech(seconds: float, piece: int = 1000) -> Script:
    data = tone(seconds).tobytes()
    return sends(*(data[i : i + piece] for i in range(0, len(data), piece)))


@net
def test_a_clause_is_asked_for_and_comes_in_small_gapless_frames_with_its_words() -> None:
    async def scene(it: Talk) -> None:
        await it.say(SENTENCE)
        assert it.server.requests == [
            {"model": "m", "voice": "v", "input": SENTENCE, "response_format": "pcm", "instructions": "calm"}
        ]
        assert "Authorization" not in it.server.headers[0]
        frames = it.out.of("audio")
        assert it.words() == SENTENCE
        assert np.array_equal(np.concatenate([f.pcm[:, 0] for f in frames]), tone(2.0))
        assert all(0 < f.duration <= 80 * MS and f.rate_hz == RATE for f in frames)
        assert all(a.pts + a.duration == b.pts for a, b in pairwise(frames))
        assert not it.stage.busy
        assert not it.ctx.events

    talk(scene, speech(2.0), extra={"instructions": "calm"})


@net
@pytest.mark.parametrize(
    ("data", "format", "rate_hz"),
    [(wav(tone(1.0, 22_050), 22_050), "wav", 22_050), (MP3, "mp3", RATE), (OPUS, "opus", 48_000)],
    ids=["wav", "mp3", "opus"],
)
def test_other_formats_are_asked_for_and_decoded(data: bytes, format: str, rate_hz: int) -> None:
    async def scene(it: Talk) -> None:
        await it.say(SENTENCE)
        assert it.server.requests[0]["response_format"] == format
        assert 1.0 <= it.seconds(rate_hz) < 1.12
        assert it.words() == SENTENCE

    talk(scene, sends(data[:100], data[100:]), format=format)


@net
def test_speed_and_volume_are_live_and_the_key_travels(tmp_path: Any) -> None:
    (tmp_path / "key").write_text("s3cret\n")

    async def scene(it: Talk) -> None:
        await it.stage.control(SetParams({"rate": 1.5, "volume": 0.5}))
        await it.say(SENTENCE)
        assert it.server.requests[0]["speed"] == 1.5
        assert it.server.headers[0]["Authorization"] == "Bearer s3cret"
        assert max(int(f.pcm.max()) for f in it.out.of("audio")) == pytest.approx(4000, abs=20)

    talk(scene, speech(0.5), key=f"file:{tmp_path / 'key'}")


@net
def test_sound_goes_out_before_the_response_ends_and_words_go_evenly_along_it() -> None:
    async def scene(it: Talk) -> None:
        await it.say(SENTENCE, end=False)
        await it.say(" ", end=False)  # now the clause is known to end
        await it.out.some.wait()
        await until(lambda: it.seconds() > 0.9)
        # 14 characters a second, while nothing is known of this voice
        assert it.words() == "One two "
        assert it.stage.busy

    talk(scene, stalls(tone(1.0).tobytes()))


@net
def test_the_pace_of_the_voice_is_learnt() -> None:
    async def scene(it: Talk) -> None:
        for n in range(12):
            await it.say(SENTENCE, utterance=n)
        before = len(it.out.frames)
        await it.say(SENTENCE, utterance=99)
        half, words = 0, ""
        for frame in it.out.of("audio")[before:]:
            half += len(frame.pcm)
            words += frame.text
            if half >= 2 * RATE:
                break
        assert words == "One two three "  # at 2 of 4 s

    talk(scene, speech(4.0, 10_000))


@net
def test_the_next_clause_is_asked_for_while_the_last_is_still_put_out() -> None:
    async def scene(it: Talk) -> None:
        room, sent = asyncio.Event(), it.out.send

        async def slowly(port: str, frame: Any) -> None:
            await sent(port, frame)
            await room.wait()

        it.out.send = slowly
        await it.say("The first one is here. The second one ", end=False)
        await it.say("is here. And ", end=False)
        await until(lambda: len(it.server.requests) == 2)
        assert len(it.out.frames) == 1
        room.set()
        await it.say("so on.")
        assert it.words() == "The first one is here. The second one is here. And so on."

    talk(scene, speech(1.0))


@net
def test_a_barge_in_ends_the_request_at_once_and_the_next_reply_is_spoken() -> None:
    async def scene(it: Talk) -> None:
        saying = asyncio.create_task(it.say(SENTENCE + " And more of it."))
        await it.out.some.wait()
        before = len(it.out.frames)
        await it.flush()
        await it.server.gone.wait()
        await saying
        assert len(it.out.frames) <= before + 1
        assert len(it.server.requests) == 1
        assert not it.stage.busy
        await it.say("New one.", utterance=2)
        assert it.words().endswith("New one.")
        assert not it.failures()  # giving up tells nothing about the endpoint

    talk(scene, stalls(tone(0.5).tobytes()), speech(0.5))


@net
def test_a_barge_in_before_the_first_sound_ends_the_request_too() -> None:
    async def scene(it: Talk) -> None:
        saying = asyncio.create_task(it.say(SENTENCE))
        await it.server.asked.wait()
        await it.flush()
        await it.server.gone.wait()
        await saying
        assert not it.out.frames

    talk(scene, stalls())


@net
@pytest.mark.parametrize(
    ("script", "content_type", "words"),
    [
        (web.Response(status=500, body=b"secret"), "audio/pcm", "HTTP 500"),
        (web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"}), "audio/pcm", "HTTP 302"),
        (sends(b'{"error": "secret"}'), "application/json", "'application/json' came"),
        (sends(), "audio/pcm", "ended without sound"),
        (stalls(), "audio/pcm", "no sound in 0.2 s"),
        (stalls(b"\0" * 9000), "audio/pcm", "no further sound in 0.2 s"),
        (drops(b"\0" * 9000), "audio/pcm", "the connection broke"),
        (sends(*[b"\0" * 10_000] * 30), "audio/pcm", "over 200000 bytes"),
        (sends(b"RIFF0000AVI LIST"), "audio/pcm", "no wav"),
    ],
)
def test_a_failure_is_told_once_in_words_and_left_alone(
    script: Script | web.Response, content_type: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(it: Talk) -> None:
        await it.say(SENTENCE)
        await it.say("And once more, please.", utterance=2)
        assert len(it.server.requests) == 1
        (failure,) = it.failures()
        assert words in str(failure["error"])
        assert failure["circuit"] == "open"
        assert it.words() != SENTENCE
        it.clock.time += 10 * SECOND
        await it.say("And again, please.", utterance=3)
        assert len(it.server.requests) == 2
        assert len(it.failures()) == 1

    limits: dict[str, Any] = {"first_byte": "8s", "between_bytes": "8s", "response_bytes": 200_000}
    if "0.2 s" in words:  # short only where it is to pass: this machine may be busy
        limits["between_bytes" if "further" in words else "first_byte"] = "200ms"
    with caplog.at_level(logging.INFO):
        talk(scene, script, content_type=content_type, **limits)
    told = [r for r in caplog.records if r.levelno >= logging.WARNING and "speech endpoint" in r.message]
    assert len(told) == 1
    assert not any(w in caplog.text for w in ("secret", "One two", "once more"))


@net
def test_an_embedded_voice_says_what_was_not_said() -> None:
    embedded()

    async def scene(it: Talk) -> None:
        await it.say(SENTENCE)
        assert it.words() == SENTENCE
        assert it.seconds() == pytest.approx(1.0)
        other = [f for f in it.out.of("audio") if f.rate_hz != RATE]
        assert "".join(f.text for f in other).startswith("three")
        assert sum(f.duration for f in other) > SECOND // 2
        await it.say("Still embedded.", utterance=2)
        assert it.seconds() == pytest.approx(1.0)
        it.clock.time += 6 * SECOND
        await it.say("It is back.", utterance=3)
        assert it.seconds() == pytest.approx(1.5)
        assert it.words() == SENTENCE + "Still embedded." + "It is back."
        (failure,) = it.failures()
        assert failure["instead"] == "an embedded voice speaks"

    talk(scene, drops(tone(1.0).tobytes()), speech(0.5), fallback=True)


@net
def test_nobody_there_is_spoken_by_the_embedded_voice() -> None:
    embedded()

    async def scene(it: Talk) -> None:
        await it.say(SENTENCE)
        assert it.words() == SENTENCE
        assert "no connection" in str(it.failures()[0]["error"])

    talk(scene, stalls(), fallback=True, base_url="http://127.0.0.1:1/v1")


@net
@pytest.mark.parametrize("text", ["", "  ", "🎉", "...", "\n"])
def test_what_has_no_words_is_not_asked_for(text: str) -> None:
    async def scene(it: Talk) -> None:
        await it.say(text)
        assert not it.server.requests

    talk(scene, stalls())


@net
def test_odd_text_arrives_whole() -> None:
    text = "x" * 10_000 + " 日本語の文章 naïve \ud800 ok."

    async def scene(it: Talk) -> None:
        await it.say(text)
        assert it.words() == text
        assert all(len(r["input"]) <= 200 for r in it.server.requests)
        assert not it.failures()

    talk(scene, speech(0.1))


@net
def test_what_is_left_is_spoken_at_the_end_and_without_a_clock() -> None:
    async def scene(it: Talk) -> None:
        await it.say("First one. Second", end=False)
        assert it.words() == "First one. "  # a file's graph goes on when it has been spoken
        result = it.stage.finish(it.out)
        assert result is not None
        await result
        assert it.words() == "First one. Second"

    talk(scene, speech(0.2), realtime=False)


@net
def test_closing_in_the_middle_leaves_nothing_behind() -> None:
    async def scene(it: Talk) -> None:
        await it.say(SENTENCE + " ", end=False)
        await it.server.asked.wait()
        await it.stage.close()
        await it.server.gone.wait()

    talk(scene, stalls())


GRAPH = """
penstock: 1
graph: talk
nodes:
  ears:  {use: test.tokens, frames: 2, every_ms: 1}
  agent: {use: llm.chat, in: {heard: ears.text}, scope: reply, base_url: "%s", model: m, system: ""}
  voice: {use: tts.stream, in: agent.say, scope: reply, endpoint: {base_url: "%s", fallback: false}}
  out:   {use: test.sink, in: {audio: voice.audio}}
"""


@net
def test_in_a_session_a_barge_in_silences_the_endpoint_and_the_next_reply_is_spoken() -> None:
    async def barge_in(session: Session) -> None:
        await until(lambda: bool(sink_of(session).got))
        session.interrupt("reply")

    async def play() -> None:
        first = stalls(delta("Once upon a time. There was more. "))
        second = sends(delta("It was new.", "stop"), DONE)
        async with (
            asyncio.timeout(20),
            serving(first, second) as (_, chat),
            serving(stalls(tone(0.5).tobytes()), speech(0.5), content_type="audio/pcm") as (server, url),
        ):
            session = await run_session(compile_test(GRAPH % (chat, url)), meanwhile=barge_in)
            await server.gone.wait()
        assert [r["input"] for r in server.requests] == ["Once upon a time.", "It was new."]
        frames = [f for _, _, f in sink_of(session).got if f.epoch == 1]
        assert "".join(f.text for f in frames) == "It was new."
        assert sum(f.duration for f in frames) == pytest.approx(0.5 * SECOND, abs=MS)
        assert session.runners["voice"].restarts == 0

    asyncio.run(play())


@net
def test_a_missing_key_is_told_at_setup() -> None:
    async def scene(it: Talk) -> None:
        raise AssertionError

    with pytest.raises(StageError, match=r"'node'.*PENSTOCK_NONE"):
        talk(scene, stalls(), key="env:PENSTOCK_NONE")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"base_url": "ftp://x"}, "not an endpoint"),
        ({"base_url": "http://a:b@x/v1"}, "user name"),
        ({"base_url": "http://x/v1", "key": "sk-123"}, "not a reference"),
        ({"base_url": "http://x/v1", "format": "flac"}, "'pcm', 'wav', 'mp3' or 'opus'"),
        ({}, "base_url"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        StreamTts.Options.model_validate({"endpoint": options})
