"""Encoders whose quantiser is finer where the importance map says so: x264 and VP8.

PyAV gives no way to add side data to a picture, but FFmpeg's own filter `addroi` does: a chain of them makes room for
regions, which are then written in place. 20 µs a picture for 16 regions.
"""
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import av
import av.filter
from av.sidedata.sidedata import Type

from ..pipeline.clock import SECOND
from .encoders import H264Encoder, VideoEncoder
from .ffmpeg_encoder import VIDEO_HZ
from .importance import ImportanceMap, Region, regions
from .vp8_rungs import RungVp8Encoder

MOST_REGIONS = 16
# struct AVRegionOfInterest (libavutil/frame.h): uint32 self_size; int top, bottom, left, right; AVRational qoffset
_ROI = struct.Struct("=Iiiiiii")
_H264_RANGE, _VP8_RANGE = 51, 63  # what a qoffset of 1 means
VP8_STEPS = (
    3.0  # of its quantiser (0 to 127) for one of H.264's (0 to 51): 2.5 by the scales; 5 breaks rate control
)
VP8_CPU_USED, VP8_HURRIED = -4, -8  # at -4 a quarter fewer bits for the same text
VP8_UNHURRIED_FPS = 10.0
SLOW_FPS = 5.0  # up to here x264 has the time for its better presets
X264_FAST, X264_SLOW = "veryfast", "medium"
AQ_STRENGTH = 1.0  # x264 ignores regions without adaptive quantisation (0.02 is enough)
SUNK = 0.5  # of the rate it was opened for: x264 would pay its debts at the old rate with seconds of mud ...
SUNK_PATIENCE = SECOND  # ... so it begins anew, with a keyframe of the new rate
REFPS = 1.3  # times off the rate it was opened for: another encoder, for its rate control counts by pictures


class RegionWriter:
    """Attaches regions to pictures of one size."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        graph = av.filter.Graph()
        self._source = graph.add_buffer(
            width=width,
            height=height,
            format=av.VideoFormat("yuv420p", width, height),
            time_base=Fraction(1, VIDEO_HZ),
        )
        last: Any = self._source
        for _ in range(MOST_REGIONS):
            region = graph.add("addroi", "x=0:y=0:w=16:h=16:qoffset=0")
            last.link_to(region)
            last = region
        self._sink = graph.add("buffersink")
        last.link_to(self._sink)
        graph.configure()
        self._graph = graph

    def __call__(self, picture: av.VideoFrame, found: Sequence[tuple[Region, float]]) -> av.VideoFrame:
        """found: regions and their qoffset in [-1, 1]; the first one holds where they overlap."""
        self._source.push(picture)
        out: Any = self._sink.pull()
        payload = b"".join(
            _ROI.pack(_ROI.size, r.top, r.bottom, r.left, r.right, round(q * 1000), 1000) for r, q in found
        )
        payload += _ROI.pack(_ROI.size, 0, 0, 0, 0, 0, 1000) * (MOST_REGIONS - len(found))
        data = out.side_data[Type.REGIONS_OF_INTEREST]
        assert data.buffer_size == len(payload), "another layout of AVRegionOfInterest"
        ctypes.memmove(data.buffer_ptr, payload, len(payload))
        return out


class RoiEncoder:
    """An encoder of ours with regions: a `VideoEncoder` for the sender, on its worker thread.

    current: the map that holds now, or None for uniform. fps: at which pictures will come; may be changed from any
    thread. preset: x264's; None chooses by fps. Attributes: `dqp`, the steps used for the last picture.
    """

    def __init__(
        self,
        codec: str,
        bitrate_bps: int,
        current: Callable[[], ImportanceMap | None],
        fps: float = 30.0,
        preset: str | None = None,
    ) -> None:
        self.codec = codec.upper()
        if self.codec not in ("H264", "VP8"):
            raise ValueError(f"no encoder with regions for {codec!r}; there are H264 and VP8")
        self.bitrate_bps = bitrate_bps
        self.hurried = False  # nor do those inside listen
        self.current = current
        self.fps = fps
        self.preset = preset
        self.dqp = 0.0
        self.bytes = 0  # made so far
        self.opened = 0  # times
        self._inner: VideoEncoder | None = None
        self._fps = 0.0
        self._opened_bps = 0
        self._low_since: int | None = None
        self._writer: RegionWriter | None = None

    def encode(self, picture: av.VideoFrame, keyframe: bool, now: int) -> tuple[bytes, bool]:
        inner = self._inner
        if inner is None or max(self.fps / self._fps, self._fps / self.fps) > REFPS or self._sunk(now):
            inner = self._inner = self._make()
        inner.bitrate_bps = self.bitrate_bps
        found = self.current()
        self.dqp = found.dqp(now) if found is not None else 0.0
        if found is not None and self.dqp:
            picture = self._attach(picture, found)
        data, is_keyframe = inner.encode(picture, keyframe, now)
        self.bytes += len(data)
        return data, is_keyframe

    def _sunk(self, now: int) -> bool:
        if self.codec != "H264" or self.bitrate_bps > SUNK * self._opened_bps:
            self._low_since = None
        elif self._low_since is None:
            self._low_since = now
        return self._low_since is not None and now - self._low_since >= SUNK_PATIENCE

    def _attach(self, picture: av.VideoFrame, found: ImportanceMap) -> av.VideoFrame:
        writer = self._writer
        if writer is None or (writer.width, writer.height) != (picture.width, picture.height):
            writer = self._writer = RegionWriter(picture.width, picture.height)
        cut = regions(found.grid, self.dqp, picture.width, picture.height, MOST_REGIONS)
        if self.codec == "VP8":
            # its four segments are three offsets beside 0: better, equal, worse
            half = VP8_STEPS * self.dqp / _VP8_RANGE / 2
            return writer(picture, [(r, half * round(2 * r.dqp / self.dqp - 1)) for r in cut])
        return writer(picture, [(r, r.dqp / _H264_RANGE) for r in cut])

    def _make(self) -> VideoEncoder:
        self.opened += 1
        self._fps = self.fps
        self._opened_bps, self._low_since = self.bitrate_bps, None
        if self.codec == "VP8":
            cpu_used = VP8_CPU_USED if self._fps <= VP8_UNHURRIED_FPS else VP8_HURRIED
            return RungVp8Encoder(self.bitrate_bps, cpu_used, qmax=63)
        return H264Encoder(
            self.bitrate_bps,
            self.preset or (X264_SLOW if self._fps <= SLOW_FPS else X264_FAST),
            fps=self._fps,
            # a picture may take its share of the rate and as much again
            buffer_s=min(1.0, max(0.25, 2 / self._fps)),
            params=f"aq-mode=1:aq-strength={AQ_STRENGTH}",
        )
