"""Encoders for live sending: low delay, a bit rate that follows the network, keyframes only when asked.

Video encoders block for some ms: call them on a worker thread, one call at a time.
"""
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from fractions import Fraction
from typing import Any, Protocol

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from ..pipeline.clock import SECOND
from ..pipeline.frame import VideoFrame
from . import vpx
from .ffmpeg_encoder import FIRST_FPS, VIDEO_HZ, encode_with, open_context
from .picture_rate import Shape
from .vp8_rungs import RungVp8Encoder

LONGEST = 5  # s between pictures that still tell of a rate
H264_CEILINGS = (200_000, 400_000, 1_200_000, 3_000_000)  # bits/s; each allows 1/40 to 1 of it
BUFFER_S = 0.2  # of the ceiling: the most that a picture may run ahead of the rate
KEYFRAME_S = 0.25  # of the rate: a larger one is made coarser
HURRIED_S = 0.1  # the same when the rate has just fallen: what waits on the way already is as much again
X264_PARAMS = "scenecut=0:sliced-threads=0"
FPS_OFF = 1.6  # times off the rate the encoder was opened for: x264 divides bits by pictures
FPS_PATIENCE = 3 * SECOND


class VideoEncoder(Protocol):
    """Attributes may be set at any time from any thread.

    bitrate_bps: to follow. hurried: the next keyframe finds a path that is full, so it is to be small; for those whose rate
    control does not see to it.
    """

    bitrate_bps: int
    hurried: bool

    def encode(self, picture: av.VideoFrame, keyframe: bool, now: int) -> tuple[bytes, bool]:
        """One picture in 4:2:0, its pts in 1/90,000 s → its bytes ("" when skipped) and is it a keyframe."""
        ...


class PictureScaler:
    """Turns our frames into what encoders take: 4:2:0, even, scaled. For one thread."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def __call__(self, frame: VideoFrame, width: int, height: int, pts: int) -> av.VideoFrame:
        """pts: in 1/90,000 s."""
        if frame.format == "i420":
            picture = av.VideoFrame.from_ndarray(frame.image, format="yuv420p")
        else:
            image = frame.image[: frame.height & ~1, : frame.width & ~1]
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        if picture.format.name != "yuv420p" or (picture.width, picture.height) != (width, height):
            picture = self._reformatter.reformat(
                picture,
                width=width,
                height=height,
                format="yuv420p",
                interpolation=Interpolation.AREA if width < picture.width else Interpolation.FAST_BILINEAR,
            )
        picture.pts = pts
        picture.time_base = Fraction(1, VIDEO_HZ)
        return picture


def encode_scaled(
    encoder: VideoEncoder,
    scaler: PictureScaler,
    frame: VideoFrame,
    shape: Shape,
    pts: int,
    keyframe: bool,
    now: int,
) -> tuple[bytes, bool]:
    """One picture in that shape: see `VideoEncoder.encode`. For worker threads."""
    return encoder.encode(scaler(frame, shape.width, shape.height, pts), keyframe, now)


class _FpsMeter:
    """The real rate of the pictures: by their mean distance, smoothed.

    Not by the mean of rates: a picture that is encoded again for a keyframe comes a moment after itself, and is then
    worth thousands a second."""

    def __init__(self, fps: float = FIRST_FPS) -> None:
        self._period = VIDEO_HZ / fps
        self._last: int | None = None

    @property
    def fps(self) -> float:
        return VIDEO_HZ / self._period

    def picture(self, pts: int) -> None:
        if self._last is not None and 0 < pts - self._last < LONGEST * VIDEO_HZ:
            self._period += 0.05 * (pts - self._last - self._period)
        self._last = pts


class H264Encoder:
    """x264, constrained baseline. Its rate follows `bitrate_bps` from picture to picture, with no keyframe.

    x264 takes a live rate only when it was opened at a constant one (bit rate = maxrate), and only below it.
    It counts bits per picture: a source slower than the rate it was opened for is given more for each.
    """

    def __init__(
        self,
        bitrate_bps: int,
        preset: str = "veryfast",
        *,
        fps: float = FIRST_FPS,
        buffer_s: float = 0.0,
        params: str = "",
    ) -> None:
        """fps: at which pictures will come. buffer_s: of the rate at opening that a picture may run ahead; 0: BUFFER_S
        of the ceiling. params: more for x264."""
        self.bitrate_bps = bitrate_bps
        self.hurried = False  # its buffer bounds each keyframe
        self.preset = preset
        self.opened = 0  # times
        self._context: Any = None
        self._ceiling = 0
        self._buffer_s = buffer_s
        self._params = params
        self._fps = fps
        self._meter = _FpsMeter(fps)
        self._off_since: int | None = None

    def encode(self, picture: av.VideoFrame, keyframe: bool, now: int) -> tuple[bytes, bool]:
        assert picture.pts is not None
        self._meter.picture(picture.pts)
        context = self._context
        if (
            context is None
            or (context.width, context.height) != (picture.width, picture.height)
            or self._wrong_fps(now)
            # it is a keyframe anyway, and under a ceiling too high it would be several times too large
            or (keyframe and self._fitting_ceiling() < self._ceiling)
        ):
            context = self._open(picture)
        scaled = self.bitrate_bps * self._fps / max(0.2, self._meter.fps)
        if scaled > self._ceiling and self._ceiling < H264_CEILINGS[-1]:
            context = self._open(picture)
            scaled = self.bitrate_bps
        bitrate = round(max(self._ceiling / 40, min(self._ceiling, scaled)))
        if abs(bitrate - context.bit_rate) > 0.03 * context.bit_rate:
            context.bit_rate = bitrate
        return encode_with(context, picture, keyframe)

    def _wrong_fps(self, now: int) -> bool:
        off = max(self._meter.fps / self._fps, self._fps / self._meter.fps)
        if off < FPS_OFF:
            self._off_since = None
        elif self._off_since is None:
            self._off_since = now
        return self._off_since is not None and now - self._off_since > FPS_PATIENCE

    def _fitting_ceiling(self) -> int:
        """With room to grow: the next ceiling is another keyframe."""
        return next((c for c in H264_CEILINGS if c >= 2 * self.bitrate_bps), H264_CEILINGS[-1])

    def _open(self, picture: av.VideoFrame) -> Any:
        self.opened += 1
        self._off_since = None
        self._fps = self._meter.fps
        self._ceiling = self._fitting_ceiling()
        # else the first keyframe is one of the ceiling's rate
        first = "" if self._buffer_s else f"vbv-init={max(0.1, 0.9 * self.bitrate_bps / self._ceiling):.2f}"
        context = open_context(
            "libx264",
            picture,
            self._ceiling,
            self._fps,
            preset=self.preset,
            tune="zerolatency",
            maxrate=self._ceiling,
            bufsize=round(self.bitrate_bps * self._buffer_s or self._ceiling * BUFFER_S),
            **{"forced-idr": 1, "x264-params": ":".join(filter(None, (X264_PARAMS, first, self._params)))},
        )
        context.profile = "Baseline"
        context.open()
        self._context = context
        return context


class Vp8Encoder:
    """libvpx. Its rate follows `bitrate_bps` from picture to picture; a keyframe is as fine as the rate allows.

    What the rate allows is not known before: a flat scene costs nothing, and is badly coloured if its first picture is coarse. So
    a keyframe is made fine, and again coarse if it was too large, each time by a new encoder, whose rate control has no past.
    """

    def __init__(self, bitrate_bps: int) -> None:
        self.bitrate_bps = bitrate_bps
        self.hurried = False
        self.opened = 0  # times
        self._encoder: vpx.Vp8 | None = None

    def encode(self, picture: av.VideoFrame, keyframe: bool, now: int) -> tuple[bytes, bool]:
        encoder = self._encoder
        if (
            encoder is not None
            and not keyframe
            and (encoder.width, encoder.height) == (picture.width, picture.height)
        ):
            return encoder.encode(picture, keyframe, self.bitrate_bps)
        data = self._open(picture, vpx.FINE_Q)
        if len(data) * 8 > self.bitrate_bps * (HURRIED_S if self.hurried else KEYFRAME_S):
            data = self._open(picture, vpx.COARSE_Q)
        return data, True

    def _open(self, picture: av.VideoFrame, max_q: int) -> bytes:
        self.opened += 1
        self._encoder = vpx.Vp8(picture.width, picture.height, self.bitrate_bps, max_q)
        return self._encoder.encode(picture, True, self.bitrate_bps)[0]


def make_video_encoder(codec: str, bitrate_bps: int) -> VideoEncoder:
    """codec: "VP8" or "H264". Raises: ValueError."""
    if codec.upper() == "H264":
        return H264Encoder(bitrate_bps)
    if codec.upper() == "VP8":
        return RungVp8Encoder(bitrate_bps) if vpx.library() is None else Vp8Encoder(bitrate_bps)
    raise ValueError(f"no video encoder for {codec!r}; there are H264 and VP8")
