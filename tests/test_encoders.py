"""The encoders on moving pictures and real lengths of sound, without any network."""

from typing import Any

import av
import numpy as np
import pytest
from penstock.pipeline.clock import SECOND
from penstock.pipeline.frame import VideoFrame
from penstock.transport import opus, vpx
from penstock.transport.encoders import (
    H264Encoder,
    PictureScaler,
    Vp8Encoder,
    make_video_encoder,
)
from penstock.transport.ffmpeg_encoder import VIDEO_HZ
from penstock.transport.opus_encoder import AUDIO_HZ, MONO_AFTER, OpusEncoder
from penstock.transport.vp8_rungs import REBUILD, RungVp8Encoder

SIZE = (320, 240)
_noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
TEXTURE = np.kron(_noise, np.ones((4, 4, 1), np.uint8))


def moving(k: int, size: tuple[int, int] = SIZE) -> VideoFrame:
    image = np.roll(TEXTURE, 3 * k, axis=1)[: size[1], : size[0]]
    return VideoFrame(pts=0, image=np.ascontiguousarray(image))


def run(
    encoder: Any, frames: int, fps: int = 30, start: int = 0, size: tuple[int, int] = SIZE, ask: int = -1
) -> list[tuple[bytes, bool]]:
    """(bytes, keyframe) of each."""
    scaler = PictureScaler()
    out: list[tuple[bytes, bool]] = []
    for k in range(start, start + frames):
        picture = scaler(moving(k, size), *size, k * VIDEO_HZ // fps)
        out.append(encoder.encode(picture, k == ask, k * SECOND // fps))
    return out


def bps(encoded: list[tuple[bytes, bool]], fps: int = 30) -> float:
    return sum(len(data) for data, _ in encoded) * 8 * fps / len(encoded)


def test_x264_follows_the_rate_without_keyframes():
    encoder = H264Encoder(600_000)
    first = run(encoder, 90)
    encoder.bitrate_bps = 300_000
    second = run(encoder, 120, start=90)
    encoder.bitrate_bps = 1_000_000
    third = run(encoder, 120, start=210)
    assert bps(first[30:]) == pytest.approx(600_000, rel=0.25)
    assert bps(second[45:]) == pytest.approx(300_000, rel=0.25)
    assert bps(third[45:]) == pytest.approx(1_000_000, rel=0.3)
    assert [k for k, (_, key) in enumerate(first + second + third) if key] == [0]
    assert encoder.opened == 1


def test_a_picture_encoded_again_at_once_takes_no_rate_from_those_after():
    """A keyframe on request is of the last picture, one tick after it: that is no rate of 90,000 pictures a second."""
    encoder, scaler = H264Encoder(200_000, fps=2), PictureScaler()
    sizes: list[int] = []
    for k in range(20):
        pts = k * VIDEO_HZ // 2
        sizes.append(len(encoder.encode(scaler(moving(k), *SIZE, pts), False, k * SECOND // 2)[0]))
        if k == 6:
            encoder.encode(scaler(moving(k), *SIZE, pts + 1), True, k * SECOND // 2)
    after = sum(sizes[10:]) * 8 * 2 / 10
    assert after == pytest.approx(200_000, rel=0.4)


def test_x264_uses_the_whole_rate_at_few_pictures_a_second():
    encoder = H264Encoder(300_000)
    encoded = run(encoder, 100, fps=10)
    assert bps(encoded[60:], fps=10) == pytest.approx(300_000, rel=0.3)


@pytest.mark.parametrize("codec", ["H264", "VP8"])
def test_keyframe_on_request_and_at_a_new_size(codec: str):
    encoder = make_video_encoder(codec, 400_000)
    encoded = run(encoder, 20, ask=10)
    assert [k for k, (_, key) in enumerate(encoded) if key] == [0, 10]
    smaller = run(encoder, 5, start=20, size=(160, 120))
    assert smaller[0][1]
    decoder = av.CodecContext.create("h264" if codec == "H264" else "libvpx", "r")
    assert isinstance(decoder, av.VideoCodecContext)
    sizes = [(f.width, f.height) for data, _ in encoded + smaller for f in decoder.decode(av.Packet(data))]
    assert sizes[0] == SIZE
    assert sizes[-1] == (160, 120)


def test_vp8_follows_the_rate_without_keyframes():
    encoder = Vp8Encoder(600_000)
    made: list[tuple[bytes, bool]] = []
    for asked in (600_000, 250_000, 1_000_000):
        encoder.bitrate_bps = asked
        part = run(encoder, 120, start=len(made))
        assert bps(part[45:]) == pytest.approx(asked, rel=0.25)
        made += part
    assert [k for k, (_, key) in enumerate(made) if key] == [0]
    assert encoder.opened <= 2


def test_a_vp8_keyframe_is_fine_where_it_costs_little_and_small_where_it_would_cost_much():
    encoder = Vp8Encoder(200_000)
    scaler = PictureScaler()
    flat = VideoFrame(pts=0, image=np.full((240, 320, 3), (200, 40, 40), np.uint8))
    data, key = encoder.encode(scaler(flat, 320, 240, 0), False, 0)
    assert key
    assert encoder.opened == 1
    decoder = av.CodecContext.create("libvpx", "r")
    (picture,) = decoder.decode(av.Packet(data))
    assert np.abs(picture.to_ndarray(format="rgb24").mean((0, 1)) - (200, 40, 40)).max() < 12  # type: ignore[union-attr]
    fine, coarse = (
        vpx.Vp8(*SIZE, 200_000, q).encode(scaler(moving(0), *SIZE, 0), True, 200_000) for q in (44, 63)
    )
    assert len(fine[0]) > 1.2 * len(coarse[0])
    again, _ = encoder.encode(scaler(moving(0), *SIZE, 3000), True, 0)
    assert len(again) <= 1.05 * len(coarse[0])


def test_a_vp8_keyframe_for_a_path_that_is_full_is_made_again_sooner():
    picture = PictureScaler()(moving(0), *SIZE, 0)
    calm, hurried = Vp8Encoder(600_000), Vp8Encoder(600_000)
    hurried.hurried = True
    fine, small = (len(encoder.encode(picture, True, 0)[0]) for encoder in (calm, hurried))
    assert 0.1 < fine * 8 / 600_000 < 0.25
    assert small <= fine
    assert (calm.opened, hurried.opened) == (1, 2)


def test_vp8_without_its_library_goes_by_rungs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vpx, "library", lambda: None)
    assert isinstance(make_video_encoder("VP8", 600_000), RungVp8Encoder)
    with pytest.raises(OSError, match="libvpx"):
        vpx.Vp8(64, 48, 100_000)


def test_vp8_rungs_are_kept_for_two_seconds_and_against_small_swings():
    encoder = RungVp8Encoder(600_000)
    run(encoder, 30)
    encoder.bitrate_bps = 1_500_000
    run(encoder, 20, start=30)
    assert encoder.opened == 1
    frames = REBUILD * 30 // SECOND
    run(encoder, frames, start=50)
    assert encoder.opened == 2
    for k in range(20):
        encoder.bitrate_bps = 1_500_000 + (-1) ** k * 80_000
        run(encoder, 10, start=50 + frames + 10 * k)
    assert encoder.opened == 2


def test_vp8_rungs_hurry_when_the_network_halves():
    encoder = RungVp8Encoder(1_500_000)
    run(encoder, 20)
    encoder.bitrate_bps = 300_000
    encoded = run(encoder, 60, start=20)
    assert encoder.opened == 2
    assert bps(encoded[20:]) < 400_000


def test_unknown_codec_is_named():
    with pytest.raises(ValueError, match="'AV1'"):
        make_video_encoder("AV1", 1)


def test_scaler_takes_odd_sizes_and_i420():
    scaler = PictureScaler()
    odd = VideoFrame(pts=0, image=np.full((121, 161, 3), 90, np.uint8))
    picture = scaler(odd, 160, 120, 5)
    assert (picture.width, picture.height, picture.format.name, picture.pts) == (160, 120, "yuv420p", 5)
    planar = VideoFrame(pts=0, image=np.full((180, 160), 128, np.uint8), format="i420")
    picture = scaler(planar, 80, 60, 0)
    assert np.abs(picture.to_ndarray().astype(int) - 128).max() <= 1


def tone(k: int, channels: int = 1, amplitude: int = 8000) -> np.ndarray:
    t = np.arange(960) + 960 * k
    left = amplitude * np.sin(2 * np.pi * 300 * t / AUDIO_HZ)
    both = [left, amplitude * np.sin(2 * np.pi * 470 * t / AUDIO_HZ)][:channels]
    return np.stack(both, axis=1).astype(np.int16)


def decode(packets: list[bytes]) -> np.ndarray:
    decoder = av.CodecContext.create("libopus", "r")
    assert isinstance(decoder, av.AudioCodecContext)
    decoder.format, decoder.layout, decoder.sample_rate = av.AudioFormat("s16"), "stereo", AUDIO_HZ
    return np.concatenate(
        [f.to_ndarray().reshape(-1, 2) for p in packets for f in decoder.decode(av.Packet(p))]
    )


@pytest.fixture(params=["libopus", "ffmpeg"])
def coder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to libopus."""
    if request.param == "ffmpeg":
        monkeypatch.setattr(opus, "library", lambda: None)
    elif opus.library() is None:
        pytest.skip("no libopus")


@pytest.mark.usefixtures("coder")
def test_opus_speech_costs_under_32_kbit_and_silence_nothing():
    encoder = OpusEncoder()
    speech = [encoder.encode(tone(k)) for k in range(100)]
    assert sum(map(len, speech)) * 8 / 2 < 40_000
    assert np.abs(decode(speech)[4800:]).max() > 6000
    silence = [encoder.encode(np.zeros((960, 1), np.int16)) for _ in range(100)]
    assert sum(bool(p) for p in silence[20:]) <= 8


@pytest.mark.usefixtures("coder")
def test_opus_is_stereo_only_while_the_channels_differ():
    encoder = OpusEncoder()
    for k in range(5):
        encoder.encode(np.repeat(tone(k), 2, axis=1))
    assert encoder.channels == 1
    wide = [encoder.encode(tone(k, 2)) for k in range(50)]
    assert encoder.channels == 2
    left, right = decode(wide)[24_000:].T
    assert np.corrcoef(left, right)[0, 1] < 0.2
    for k in range(MONO_AFTER):
        encoder.encode(tone(k))
    assert encoder.channels == 1


def test_both_ways_to_libopus_make_the_same_bytes(monkeypatch: pytest.MonkeyPatch):
    if opus.library() is None:
        pytest.skip("no libopus")
    frames = [tone(k) for k in range(60)]  # FFmpeg encodes two channels as surround sound
    direct = OpusEncoder()
    ours = [direct.encode(frame) for frame in frames]
    monkeypatch.setattr(opus, "library", lambda: None)
    through = OpusEncoder()
    assert ours == [through.encode(frame) for frame in frames]


def test_opus_refuses_another_length():
    with pytest.raises(ValueError, match="480"):
        OpusEncoder().encode(np.zeros((480, 1), np.int16))
