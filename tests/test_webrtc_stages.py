import asyncio
import itertools
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
from fakes import Collected, FakeContext
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from penstock.pipeline.clock import MS, SECOND, LoopClock, ManualClock
from penstock.pipeline.frame import AudioFrame, TokenFrame, VideoFrame
from penstock.pipeline.stage import Flush, StageError
from penstock.pipeline.units import AudioFormat, VideoFormat
from penstock.pipeline.virtual_loop import run_virtual
from penstock.transport.audio_out import SAMPLES, AudioOut
from penstock.transport.capture_clock import LATE, CaptureClock
from penstock.transport.fit import AudioFit, VideoFit, fitted
from penstock.transport.line import Line
from penstock.transport.peer import Peer
from penstock.transport.video_out import VideoOut
from penstock.transport.webrtc_stages import WebRtcIn, WebRtcOut, text_kind


def tone(ms: int, epoch: int = 0, rate_hz: int = 48_000) -> AudioFrame:
    pcm = np.full((rate_hz * ms // 1000, 1), 1000, np.int16)
    return AudioFrame(pts=0, pcm=pcm, rate_hz=rate_hz, epoch=epoch)


def picture(value: int, pts: int = 0, size: tuple[int, int] = (64, 48)) -> VideoFrame:
    return VideoFrame(pts=pts, image=np.full((size[1], size[0], 3), value, np.uint8))


async def pull(track: AudioOut, frames: int) -> np.ndarray[Any, np.dtype[np.int16]]:
    """(frames·960,): what the encoder is given."""
    return np.concatenate([(await track.recv()).to_ndarray()[0] for _ in range(frames)])


# ---------------------------------------------------------------- audio out


def test_audio_is_paced_in_real_time_with_silence_when_empty():
    async def main() -> None:
        clock = LoopClock(asyncio.get_running_loop())
        track = AudioOut(clock)
        start = clock.now()
        sound = await pull(track, 51)
        assert clock.now() - start == 50 * 20 * MS
        assert not sound.any()

    run_virtual(main())


def test_writer_waits_while_more_than_ahead_is_buffered():
    async def main() -> None:
        clock = LoopClock(asyncio.get_running_loop())
        track = AudioOut(clock, ahead=60 * MS)
        await track.write(tone(60))
        waiting = asyncio.create_task(track.write(tone(100)))
        await asyncio.sleep(0)
        assert not waiting.done()
        assert track.buffered == 160 * MS
        await pull(track, 5)
        await asyncio.sleep(0)
        assert waiting.done()
        assert track.buffered == 60 * MS

    run_virtual(main())


def test_flush_silences_within_one_frame_and_frees_the_writer():
    async def main() -> None:
        clock = LoopClock(asyncio.get_running_loop())
        track = AudioOut(clock)
        writer = asyncio.create_task(track.write(tone(500, epoch=1)))
        await pull(track, 2)
        track.flush(2)
        await asyncio.wait_for(writer, 1)
        fade = await pull(track, 1)
        assert np.all(np.diff(fade[:240].astype(int)) <= 0), "it fades"
        assert not fade[240:].any()
        assert not (await pull(track, 5)).any()
        await track.write(tone(20, epoch=1))  # a straggler of the old reply
        assert track.buffered == 0
        await track.write(tone(20, epoch=2))
        assert (await pull(track, 1)).all()

    run_virtual(main())


def test_a_loop_that_stood_still_does_not_burst():
    async def main() -> None:
        clock = ManualClock()
        track = AudioOut(clock)
        await track.recv()
        clock.time += 2 * SECOND
        late = await track.recv()
        after = clock.time
        await track.recv()
        assert late.pts is not None
        assert abs(late.pts - 2 * 48_000) <= 2 * SAMPLES
        assert clock.time - after >= 19 * MS

    asyncio.run(main())


@pytest.mark.parametrize("rate_hz", [16_000, 22_050, 24_000, 48_000])
def test_speech_of_any_rate_comes_out_at_48_khz(rate_hz: int):
    async def main() -> None:
        clock = LoopClock(asyncio.get_running_loop())
        track = AudioOut(clock, ahead=SECOND)
        for _ in range(10):
            await track.write(tone(40, rate_hz=rate_hz))
        assert abs(track.buffered - 400 * MS) < 5 * MS
        sound = await pull(track, 15)
        assert abs(int(np.median(sound)) - 1000) < 20

    run_virtual(main())


def test_a_stopped_track_lets_its_writer_go():
    async def main() -> None:
        track = AudioOut(LoopClock(asyncio.get_running_loop()))
        writer = asyncio.create_task(track.write(tone(500)))
        await asyncio.sleep(0)
        track.stop()
        await asyncio.wait_for(writer, 1)

    run_virtual(main())


# ---------------------------------------------------------------- video out


def test_only_the_newest_picture_is_sent():
    async def main() -> None:
        track = VideoOut()
        for i in range(5):
            track.show(picture(50 * i, pts=i * 33 * MS))
        sent = await track.recv()
        assert sent.to_ndarray(format="rgb24")[0, 0, 0] == 200
        assert track.replaced == 4
        waiting = asyncio.create_task(track.recv())
        await asyncio.sleep(0)
        assert not waiting.done()
        track.show(picture(10, pts=SECOND))
        await waiting

    asyncio.run(main())


def test_timestamps_rise_even_when_pts_do_not_and_odd_sizes_become_even():
    async def main() -> None:
        track = VideoOut()
        seen: list[int] = []
        for pts in (0, 33 * MS, 33 * MS, 20 * MS, 100 * MS):
            track.show(picture(0, pts=pts, size=(65, 49)))
            frame = await track.recv()
            assert (frame.width, frame.height) == (64, 48)
            assert frame.pts is not None
            seen.append(frame.pts)
        assert seen == sorted(set(seen))
        assert seen[-1] == 9000

    asyncio.run(main())


# ---------------------------------------------------------------- media in


def test_pictures_keep_their_aspect_and_fit_inside():
    assert fitted(1280, 720, VideoFormat(640, 480)) == (640, 360)
    assert fitted(320, 240, VideoFormat(640, 480)) == (640, 480)
    assert fitted(480, 640, VideoFormat(640, 480)) == (360, 480)


@given(st.integers(2, 5000), st.integers(2, 5000), st.integers(16, 4000), st.integers(16, 4000))
@settings(max_examples=100, deadline=None)
def test_any_fit_is_even_and_within_one_pixel_of_the_bounds(w: int, h: int, to_w: int, to_h: int):
    width, height = fitted(w, h, VideoFormat(to_w, to_h))
    assert width % 2 == height % 2 == 0
    assert 2 <= width <= max(2, to_w + 1)
    assert 2 <= height <= max(2, to_h + 1)


@pytest.mark.parametrize(("pixels", "shape"), [("rgb24", (360, 640, 3)), ("i420", (540, 640))])
def test_video_fit_gives_the_format_asked_for(pixels: Any, shape: tuple[int, ...]):
    frame = av.VideoFrame.from_ndarray(np.full((720, 1280, 3), 90, np.uint8), format="rgb24")
    frame.pts, frame.time_base = 9000, Fraction(1, 90_000)
    result = VideoFit(VideoFormat(640, 480), pixels)(frame)
    assert result is not None
    at, image = result
    assert at == 100 * MS
    assert image.shape == shape


def test_video_is_thinned_to_its_frame_rate():
    fit = VideoFit(VideoFormat(64, 48, fps=15), "i420")
    kept = 0
    for i in range(60):
        frame = av.VideoFrame(64, 48, "yuv420p")
        frame.pts, frame.time_base = i * 3000, Fraction(1, 90_000)
        kept += fit(frame) is not None
    assert 29 <= kept <= 31


def audio_in(at_ms: int) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(np.full((1, 1920), 500, np.int16), format="s16", layout="stereo")
    frame.sample_rate, frame.pts, frame.time_base = 48_000, at_ms * 48, Fraction(1, 48_000)
    return frame


def test_audio_fit_cuts_even_frames_and_tells_holes_by_their_time():
    fit = AudioFit(AudioFormat(16_000, 1, 20 * MS))
    got: list[tuple[int, int]] = []
    for at in [*range(0, 200, 20), *range(300, 500, 20)]:
        got += [(media, len(pcm)) for media, pcm in fit(audio_in(at)) or []]
    assert {n for _, n in got} == {320}
    times = [media for media, _ in got]
    steps = {b - a for a, b in itertools.pairwise(times)}
    assert 20 * MS in steps
    assert len(steps) == 2, "even before and after, one jump between"
    assert 300 * MS in times


@given(st.lists(st.integers(0, 400), min_size=5, max_size=60))
@settings(max_examples=60, deadline=None)
def test_capture_times_are_past_and_never_run_back(delays_ms: list[int]):
    clock = CaptureClock()
    last = now = -1
    for i, delay in enumerate(delays_ms):
        media = i * 20 * MS
        now = max(now, 10 * SECOND + media + delay * MS)  # frames arrive in order
        clock.heard(media, now)
        pts = clock.at(media)
        assert last <= pts <= now
        assert now - pts <= LATE + 400 * MS
        last = pts


def test_a_jump_of_the_far_ends_clock_is_followed():
    clock = CaptureClock()
    for media, arrival in ((0, SECOND), (3600 * SECOND, 2 * SECOND), (0, 3 * SECOND)):
        clock.heard(media, arrival)
        assert clock.at(media) == arrival


# ---------------------------------------------------------------- the stages


def test_live_ends_without_a_peer_say_what_to_do():
    with pytest.raises(StageError, match="--in FILE"):
        asyncio.run(WebRtcIn().setup())
    with pytest.raises(StageError, match="--out FILE"):
        asyncio.run(WebRtcOut().setup())


def test_kind_of_text_follows_the_port():
    assert [text_kind(s) for s in ("asr.partial", "asr.commit", "agent.say")] == [
        "partial",
        "commit",
        "delta",
    ]


def test_chat_lines_become_text_frames_until_the_peer_is_gone():
    async def main() -> None:
        peer = Peer("s-test", ManualClock())
        line = Line(ManualClock(), peer)
        stage = WebRtcIn(line=line)
        stage.ctx = FakeContext()
        await stage.setup()
        out = Collected()
        line.chat.put_nowait("first")
        line.chat.put_nowait("second")
        running = asyncio.create_task(stage.run(out))
        line.close()
        await asyncio.wait_for(running, 5)
        await peer.close()
        assert [f.text for f in out.of("text")] == ["first", "second"]

    asyncio.run(main())


def test_out_without_tracks_or_channel_drops_everything():
    async def main() -> None:
        peer = Peer("s-test", ManualClock())
        stage = WebRtcOut(line=Line(ManualClock(), peer))
        stage.ctx = FakeContext()
        await stage.setup()
        out = Collected()
        for port, frame in (
            ("video", picture(0)),
            ("audio", tone(500)),
            ("text", TokenFrame(pts=0, text="x")),
        ):
            assert stage.process(port, frame, out) is None
        await stage.control(Flush("reply", 1))
        await peer.close()

    asyncio.run(main())


@pytest.mark.parametrize("channels", [1, 2])
def test_frames_of_the_form_asked_for_give_what_the_resampler_gives(channels: int):
    rng = np.random.default_rng(0)
    sound = rng.integers(-30_000, 30_000, (9600, 2), np.int16)

    def fitted_in(samples: int) -> list[tuple[int, NDArray[np.int16]]]:
        fit = AudioFit(AudioFormat(48_000, channels, 20 * MS))
        out: list[tuple[int, NDArray[np.int16]]] = []
        for at in range(0, len(sound), samples):
            packed = np.ascontiguousarray(sound[at : at + samples]).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(packed, format="s16", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = 48_000, at, Fraction(1, 48_000)
            out += fit(frame) or []
        return out

    direct, cut = fitted_in(960), fitted_in(480)
    assert [at for at, _ in direct] == [at for at, _ in cut] == [k * 20 * MS for k in range(10)]
    for (_, ours), (_, theirs) in zip(direct, cut, strict=True):
        assert ours.shape == theirs.shape == (960, channels)
        assert np.abs(ours.astype(int) - theirs).max() <= 1
