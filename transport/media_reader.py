"""Reads pictures and sound of a file, URL or device through FFmpeg, in the order of their times. Blocking."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from av.stream import Disposition
from numpy.typing import NDArray

from ..pipeline.clock import MS, SECOND
from ..pipeline.frame import AudioFrame, Frame, PixelFormat, VideoFrame
from ..pipeline.pixels import i420_from_rgb
from ..pipeline.secret import shown
from ..pipeline.stage import StageError
from ..pipeline.units import AudioFormat, VideoFormat
from .srt_pipe import SrtPipe

_URL = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_MKV_END = re.compile(r"(\d+):(\d\d):(\d\d\.\d+)")  # what Matroska tells of each stream: its last time
_JUMP = 40 * MS  # sound whose time differs by more than this starts anew there; less is rounding
_HOLD = SECOND  # of media that waits for another stream's earlier frames
_HOLD_PICTURES = 12
_CUT_SHORT = SECOND // 2  # missing at the end: the file is truncated


def is_live(path: str) -> bool:
    """Does the source set its own pace: a stream or a capture device?"""
    match = _URL.match(path)
    scheme = match[1].lower() if match else ""
    return path.startswith("/dev/") or scheme in {
        "rtsp",
        "rtsps",
        "rtmp",
        "rtmps",
        "rtp",
        "udp",
        "srt",
        "tcp",
    }


class MediaReader:
    """`read` gives (port, frame) pairs until None. Times start at 0 where the container starts.

    Raises, when made: StageError when the source is missing, unreachable, or holds no media.
    """

    def __init__(
        self,
        path: str,
        video: VideoFormat | None,
        audio: AudioFormat,
        *,
        format: PixelFormat = "rgb24",
        ports: frozenset[str] = frozenset({"video", "audio"}),
        timeout_s: float = 10.0,
    ) -> None:
        self.path = path
        self.live = is_live(path)
        self.warnings: list[str] = []
        self.position = 0  # end of what was read, ns
        self._video = video
        self._format: PixelFormat = format
        self._pipe = (
            SrtPipe(path, reading=True, timeout_s=timeout_s) if path.lower().startswith("srt:") else None
        )
        try:
            self._container = _open(path, timeout_s, self._pipe)
        except BaseException:
            if self._pipe:
                self._pipe.close()
            raise
        pictures = [s for s in self._container.streams.video if not s.disposition & Disposition.attached_pic]
        sounds = self._container.streams.audio
        if not pictures and not sounds:
            self._container.close()
            raise StageError(f"{shown(path)!r} has neither pictures nor sound")
        self.has_video, self.has_audio = bool(pictures), bool(sounds)
        self._streams: list[Any] = [
            *(pictures[:1] if "video" in ports else []),
            *(sounds[:1] if "audio" in ports else []),
        ]
        for stream in self._streams:
            stream.thread_type = "SLICE" if self.live else "AUTO"
        start = (self._container.start_time or 0) * 1000  # av's unit is the µs
        self._start: int | None = None if self.live else start
        self.duration = (
            0 if self.live else self._length(start)
        )  # of what is read, ns; 0 where it is not known
        self._sound = _Sound(audio)
        self._heap: list[tuple[int, int, str, Any]] = []
        self._order = 0
        self._seen: dict[int, int] = {s.index: -1 for s in self._streams}  # newest pts of each stream
        self._held_pictures = 0
        self._next_picture: float | None = None  # when the next is due, where fps is bounded
        self._period = SECOND / video.fps if video and video.fps else 0.0
        self._corrupt = 0
        self._packets = self._demux()

    def read(self) -> list[tuple[str, Frame]] | None:
        """The next few frames, maybe none; None at the end. Raises: StageError when a live source dies."""
        if not self._streams:
            return None
        packet = next(self._packets, None)
        if packet is None:
            if self._packets is _ENDED:
                return None
            self._packets = _ENDED
            for stream in self._streams:  # after damage the decoders still hold whole frames
                for frame in self._decode(stream.codec_context, None):
                    self._hold(stream, frame)
            rest = list(self._release(everything=True)) + [("audio", f) for f in self._sound.end()]
            self._tell_end()
            return rest
        for frame in self._decode(packet):
            self._hold(packet.stream, frame)
        return list(self._release(everything=self.live))

    def close(self) -> None:
        """Give the file back. Idempotent."""
        self._container.close()
        if self._pipe:
            self._pipe.close()

    def _length(self, start: int) -> int:
        """Until the last of the streams that are read ends: others may go on."""
        ends = [_end(stream) for stream in self._streams]
        if ends and all(ends):
            return max(0, max(ends) - start)
        if len(self._streams) < len(self._container.streams):
            return 0  # the container's may be another stream's
        return max(0, self._container.duration or 0) * 1000

    # ------------------------------------------------------------ decoding

    def _demux(self) -> Iterator[Any]:
        try:
            yield from self._container.demux(self._streams)
        except av.error.EOFError:
            return
        except (av.error.ExitError, av.error.TimeoutError, TimeoutError) as e:
            raise StageError(f"{shown(self.path)!r} sent nothing for too long") from e
        except av.error.FFmpegError as e:
            if self.live:
                raise StageError(f"{shown(self.path)!r} broke off: {e.strerror}") from e
            self.warnings.append(
                f"{shown(self.path)!r} is damaged after {self.position / SECOND:.2f} s: {e.strerror}"
            )

    def _decode(self, decoder: Any, *packet: Any) -> list[Any]:
        """Of a packet, or of a codec context and None: all it still holds."""
        try:
            return decoder.decode(*packet)
        except av.error.EOFError:
            return []
        except av.error.FFmpegError:
            self._corrupt += 1  # decoders recover at the next good packet
            return []

    def _hold(self, stream: Any, frame: Any) -> None:
        base: Fraction = frame.time_base or stream.time_base
        ticks = frame.pts if frame.pts is not None else frame.dts
        before = self._seen[stream.index]
        if ticks is None:
            pts = before + 1 if self._start is not None else 0
        else:
            absolute = round(ticks * base * SECOND)
            if self._start is None:
                self._start = absolute
            pts = absolute - self._start
        self._seen[stream.index] = max(before, pts)
        kind = "video" if stream.type == "video" else "audio"
        if kind == "video":
            if not self._due(pts):
                return
            self._held_pictures += 1
        self._order += 1
        heapq.heappush(self._heap, (pts, self._order, kind, frame))

    def _due(self, pts: int) -> bool:
        """Thin to the wanted frame rate: on average exact, also from 50 to 30."""
        if not self._period:
            return True
        if self._next_picture is None:
            self._next_picture = float(pts)
        if pts < self._next_picture - self._period * 0.05:  # 5 %: times rounded to ms are not early
            return False
        self._next_picture = max(self._next_picture + self._period, pts - self._period + 1)
        return True

    def _release(self, *, everything: bool) -> Iterator[tuple[str, Frame]]:
        """What no other stream can come before. A stream that is far behind is not waited for."""
        newest = max(self._seen.values())
        safe = max(min(self._seen.values()), newest - _HOLD)
        while self._heap and (everything or self._heap[0][0] <= safe or self._held_pictures > _HOLD_PICTURES):
            pts, _, kind, frame = heapq.heappop(self._heap)
            self.position = max(self.position, pts)
            if kind == "video":
                self._held_pictures -= 1
                yield "video", VideoFrame(pts=pts, image=self._picture(frame), format=self._format)
            else:
                for sound in self._sound.push(frame, pts):
                    yield "audio", sound

    def _picture(self, frame: Any) -> NDArray[np.uint8]:
        """Upright, fitted into the wanted size with its aspect kept and never enlarged."""
        turns = round(frame.rotation / 90) % 4
        width, height = frame.width, frame.height
        if self._video:
            w, h = (width, height) if turns % 2 == 0 else (height, width)
            scale = min(1.0, self._video.width / w, self._video.height / h)
            if scale < 1:
                width, height = (max(2, round(n * scale / 2) * 2) for n in (width, height))
        if self._format == "i420" and not turns and width % 2 == 0 and height % 2 == 0:
            planes = frame.reformat(width, height, "yuv420p", dst_colorspace="ITU601", dst_color_range="MPEG")
            return np.asarray(planes.to_ndarray(), np.uint8)
        rgb = np.asarray(frame.reformat(width, height, "rgb24").to_ndarray(), np.uint8)
        if turns:
            rgb = np.ascontiguousarray(np.rot90(rgb, turns))  # both count counter-clockwise
        return i420_from_rgb(rgb) if self._format == "i420" else rgb

    def _tell_end(self) -> None:
        end = max(self.position, self._sound.until)
        if self._corrupt:
            self.warnings.append(f"{shown(self.path)!r}: {self._corrupt} damaged packets were skipped")
        if self.duration and end < self.duration - _CUT_SHORT - self.duration // 50:
            self.warnings.append(
                f"{shown(self.path)!r} ends after {end / SECOND:.2f} s of {self.duration / SECOND:.2f} s: it is cut short"
            )


_ENDED: Iterator[Any] = iter(())


class _Sound:
    """Resamples to the wanted format and cuts into frames of its length, with true times."""

    def __init__(self, format: AudioFormat) -> None:
        self._format = format
        self._step = max(1, format.rate_hz * format.frame // SECOND)
        self._buffer = np.zeros((0, format.channels), np.int16)  # not yet given out
        self._begin = 0  # pts of the first sample since the last jump
        self._given = 0  # samples given out since then
        self._expected: int | None = None  # pts of the next input frame
        self.until = 0  # pts where what was given out ends
        self._resampler = self._new_resampler()

    def _new_resampler(self) -> Any:
        layout = "mono" if self._format.channels == 1 else "stereo"
        return av.AudioResampler(format="s16", layout=layout, rate=self._format.rate_hz)

    def push(self, frame: Any, pts: int) -> list[AudioFrame]:
        out: list[AudioFrame] = []
        if self._expected is None or abs(pts - self._expected) > _JUMP:
            if self._expected is not None:
                out = self.end()
                pts = max(pts, self.until)  # never back: time of sound only moves on
            self._begin, self._given = pts, 0
        self._expected = pts + frame.samples * SECOND // frame.sample_rate
        frame.pts = None  # the resampler would pad for times; we keep them ourselves
        self._take(self._resampler.resample(frame))
        return out + self._cut(self._step)

    def end(self) -> list[AudioFrame]:
        """What is still held, the last frame maybe shorter."""
        if self._expected is None:
            return []
        self._take(self._resampler.resample(None))
        self._resampler = self._new_resampler()
        out = self._cut(self._step)
        return out + (self._cut(len(self._buffer)) if len(self._buffer) else [])

    def _take(self, frames: list[Any]) -> None:
        blocks = [f.to_ndarray().reshape(-1, self._format.channels) for f in frames]
        if blocks:
            self._buffer = np.concatenate([self._buffer, *blocks]).astype(np.int16, copy=False)

    def _cut(self, step: int) -> list[AudioFrame]:
        out: list[AudioFrame] = []
        rate_hz = self._format.rate_hz
        while len(self._buffer) >= step:
            pts = self._begin + self._given * SECOND // rate_hz
            pcm, self._buffer = self._buffer[:step], self._buffer[step:]
            self._given += len(pcm)
            self.until = self._begin + self._given * SECOND // rate_hz
            out.append(AudioFrame(pts=pts, pcm=pcm, rate_hz=rate_hz))
        return out


def _end(stream: Any) -> int:
    """When a stream ends by its own header, ns; 0 where that tells nothing."""
    if stream.duration and stream.duration > 0:
        return round(((stream.start_time or 0) + stream.duration) * stream.time_base * SECOND)
    match = _MKV_END.fullmatch(stream.metadata.get("DURATION", ""))
    return round((int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])) * SECOND) if match else 0


def _open(path: str, timeout_s: float, pipe: SrtPipe | None) -> Any:
    url = _URL.match(path)
    if not url:
        if not Path(path).exists():
            what = "device" if path.startswith("/dev/") else "file"
            raise StageError(f"no {what} {shown(path)!r}")
        if Path(path).is_dir():
            raise StageError(f"{shown(path)!r} is a folder; give a media file, a URL or a device")
    options = {"rtsp_transport": "tcp"} if url and url[1].lower() in {"rtsp", "rtsps"} else {}
    format = "v4l2" if path.startswith("/dev/video") else None
    try:
        if pipe:
            return _from_pipe(pipe)
        return av.open(path, format=format, options=options, timeout=(timeout_s, timeout_s))
    except (av.error.ExitError, av.error.TimeoutError) as e:
        raise StageError(f"{shown(path)!r} did not answer within {timeout_s:g} s") from e
    except av.error.InvalidDataError as e:
        raise StageError(
            f"{shown(path)!r} is not media that FFmpeg can read, or its beginning or index is missing"
        ) from e
    except (av.error.FFmpegError, OSError) as e:
        raise StageError(f"cannot open {shown(path)!r}: {e.strerror or e}") from e


def _from_pipe(pipe: SrtPipe) -> Any:
    try:
        return av.open(pipe, format="mpegts")
    except TimeoutError as e:
        raise StageError(f"{pipe.url!r} sent nothing in time") from e
    except (av.error.FFmpegError, OSError) as e:
        raise StageError(f"cannot open {pipe.url!r}: {pipe.why() or e.strerror or e}") from e
