"""Decoded media brought to the form a graph asks for, on the decoder's thread; and the way back to av."""

from __future__ import annotations

from typing import cast

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from ..pipeline.clock import MS, SECOND
from ..pipeline.frame import PixelFormat, VideoFrame
from ..pipeline.units import AudioFormat, VideoFormat

HOLE = 10 * MS  # audio timestamps that jump by more are a loss, not rounding


def media_time(frame: av.AudioFrame | av.VideoFrame) -> int:
    """The frame's timestamp in ns on its track's own time."""
    if frame.pts is None or frame.time_base is None:
        return 0
    return frame.pts * frame.time_base.numerator * SECOND // frame.time_base.denominator


def fitted(width: int, height: int, within: VideoFormat) -> tuple[int, int]:
    """The largest even size of the same aspect inside `within`. It also grows: a sender that adapts its
    resolution keeps its shape, so stages after it see one size."""
    scale = min(within.width / width, within.height / height)
    return max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2)


class VideoFit:
    """Scales to fit inside the size asked for, keeping the aspect, without bars; thins to its fps.

    Gives (media time in ns, image), the image uint8 (H, W, 3) for rgb24, (H·3/2, W) for i420.
    """

    def __init__(self, form: VideoFormat | None, pixels: PixelFormat) -> None:
        self.form = form
        self.pixels: PixelFormat = pixels
        self._reformatter = VideoReformatter()
        self._next = -1

    def __call__(self, frame: av.VideoFrame) -> tuple[int, NDArray[np.uint8]] | None:
        at = media_time(frame)
        form = self.form
        if form is not None and form.fps and not self._due(at, round(SECOND / form.fps)):
            return None
        # without a size in the graph: as captured, made even
        within = form or VideoFormat(frame.width & ~1 or 2, frame.height & ~1 or 2)
        width, height = fitted(frame.width, frame.height, within)
        shaped = self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="rgb24" if self.pixels == "rgb24" else "yuv420p",
            interpolation=Interpolation.AREA if width < frame.width else Interpolation.BILINEAR,
        )
        return at, cast("NDArray[np.uint8]", shaped.to_ndarray())

    def _due(self, at: int, period: int) -> bool:
        if at < self._next - period // 2 and self._next - at < SECOND:  # further off: the clock jumped
            return False
        self._next = max(self._next + period, at + period // 2) if self._next - at < SECOND else at + period
        return True


class AudioFit:
    """Resamples, mixes to mono or stereo and cuts into frames of one length.

    Gives a list of (media time in ns, pcm int16 (T, C)). A hole in the timestamps starts the cutting afresh. Frames that
    have the rate and length asked for are only mixed: what browsers send to a graph of 48 kHz.
    """

    def __init__(self, form: AudioFormat) -> None:
        self.form = form
        self._samples = form.rate_hz * form.frame // SECOND
        self._resampler: av.AudioResampler | None = None
        self._expected = 0  # media time that continues the sound, ns
        self._base = 0  # media time of the first sample since the last hole, ns
        self._given = 0  # samples since then

    def __call__(self, frame: av.AudioFrame) -> list[tuple[int, NDArray[np.int16]]] | None:
        at = media_time(frame)
        hole = abs(at - self._expected) > HOLE
        if (
            frame.samples == self._samples
            and frame.sample_rate == self.form.rate_hz
            and frame.format.name == "s16"
            and (self._resampler is None or hole)  # else some of the sound before is still in it
        ):
            self._resampler = None
            self._expected = at + self.form.frame
            return [(at, self._mixed(frame))]
        if self._resampler is None or hole:
            self._resampler = av.AudioResampler(
                format="s16",
                layout="mono" if self.form.channels == 1 else "stereo",
                rate=self.form.rate_hz,
                frame_size=self._samples,
            )
            self._base, self._given = at, 0
        self._expected = at + frame.samples * SECOND // frame.sample_rate
        frame.pts = None  # the resampler counts by itself
        out: list[tuple[int, NDArray[np.int16]]] = []
        for cut in self._resampler.resample(frame):
            pcm = cast("NDArray[np.int16]", cut.to_ndarray().reshape(-1, self.form.channels))
            out.append((self._base + self._given * SECOND // self.form.rate_hz, pcm))
            self._given += len(pcm)
        return out or None

    def _mixed(self, frame: av.AudioFrame) -> NDArray[np.int16]:
        channels = frame.layout.nb_channels
        pcm = cast("NDArray[np.int16]", frame.to_ndarray().reshape(-1, channels))
        if channels == self.form.channels:
            return pcm
        if channels == 1:
            return np.repeat(pcm, self.form.channels, axis=1)
        return ((pcm[:, :1].astype(np.int32) + pcm[:, 1:2]) >> 1).astype(np.int16)


def to_av(frame: VideoFrame) -> av.VideoFrame:
    """rgb24 (H, W, 3) or i420 (H·3/2, W) → yuv-encodable picture; an odd last row or column is cut off."""
    if frame.format == "i420":
        return av.VideoFrame.from_ndarray(frame.image, format="yuv420p")
    image = frame.image[: frame.height & ~1, : frame.width & ~1]
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
