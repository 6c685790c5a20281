"""Writes pictures and sound to a media file or URL through FFmpeg, at their true times. Blocking."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import cv2
import numpy as np
from numpy.typing import NDArray

from ..pipeline.clock import MS, SECOND
from ..pipeline.frame import AudioFrame, VideoFrame
from ..pipeline.pixels import to_i420, to_rgb
from ..pipeline.secret import shown
from ..pipeline.stage import StageError
from ..pipeline.stopping import completing
from .srt_pipe import SrtPipe

_TICKS = Fraction(1, 90_000)  # of pictures' times, as RTP has it
_SLACK = 20 * MS  # sound that is later than this leaves a gap; less is jitter of times
_LAG = 10 * SECOND  # sound this far behind the pictures has paused: fill with silence
_WAIT = 30 * SECOND  # of media, for a connected stream that has not begun
_WAIT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Container:
    """What goes into files of a suffix."""

    format: str
    video: str = ""  # encoder; "" when it takes none
    audio: str = ""
    options: tuple[tuple[str, str], ...] = ()
    live: bool = False  # somebody watches while it is written


_CRASH_SAFE = (("cluster_time_limit", "1000"), ("flush_packets", "1"))  # ms: at most this is lost
CONTAINERS = {
    ".mp4": Container("mp4", "libx264", "aac", (("movflags", "+faststart"),)),
    ".m4v": Container("mp4", "libx264", "aac", (("movflags", "+faststart"),)),
    ".mov": Container("mov", "libx264", "aac", (("movflags", "+faststart"),)),
    ".mkv": Container("matroska", "libx264", "aac", _CRASH_SAFE),
    ".webm": Container("webm", "libvpx", "libopus", _CRASH_SAFE),
    ".ts": Container("mpegts", "libx264", "aac"),
    ".m3u8": Container("hls", "libx264", "aac", (("hls_time", "2"), ("hls_flags", "temp_file"))),
    ".m4a": Container("ipod", "", "aac", (("movflags", "+faststart"),)),
    ".mka": Container("matroska", "", "aac", _CRASH_SAFE),
    ".mp3": Container("mp3", "", "libmp3lame"),
    ".flac": Container("flac", "", "flac"),
    ".ogg": Container("ogg", "", "libopus"),
    ".opus": Container("ogg", "", "libopus"),
    ".wav": Container("wav", "", "pcm_s16le"),
}
_STREAMS = {
    "rtsp": Container("rtsp", "libx264", "aac", (("rtsp_transport", "tcp"),), live=True),
    "rtmp": Container("flv", "libx264", "aac", live=True),
    "udp": Container("mpegts", "libx264", "aac", live=True),
    "tcp": Container("mpegts", "libx264", "aac", live=True),
    "srt": Container("mpegts", "libx264", "aac", live=True),
}
# a live list keeps the newest segments; those who watch seek by keyframes, and wait for the first
_HLS = {
    True: {"hls_list_size": "6", "hls_flags": "temp_file+delete_segments"},
    False: {"hls_playlist_type": "vod"},
}
_WATCHED = {"tune": "zerolatency", "g": "60"}
_RATES = {
    "libopus": (48_000,),
    "libmp3lame": (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000),
    "aac": (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 64_000, 88_200, 96_000),
}
_ENCODER_OPTIONS = {
    "libx264": {"preset": "veryfast", "crf": "21"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8", "crf": "12", "b": "2500k"},
    "libopus": {"b": "96k"},
}
_URL = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)


def container_of(path: str) -> Container:
    """What a path's suffix or a URL's scheme stands for. Raises: StageError with what is accepted."""
    url = _URL.match(path)
    table, key = (_STREAMS, url[1].lower()) if url else (CONTAINERS, Path(path).suffix.lower())
    if key not in table:
        raise StageError(
            f"cannot write {shown(path)!r}: files are {' '.join(CONTAINERS)}, or text .vtt .srt .txt .jsonl; "
            f"URLs are {', '.join(_STREAMS)}"
        )
    return table[key]


class MediaWriter:
    """One file: encodes what comes and writes it when all of `expected` ("video", "audio") have begun.

    A file is written beside itself as `NAME.part.SUFFIX` and renamed by `finish`; a .part.mkv or .part.webm is
    playable as it is when the process died. `origin` is the time that the file starts at, ns; `late_start` how
    long it waits for an expected stream that has not begun; `live`: an .m3u8 keeps only its newest segments.

    Raises, when made: StageError when the place cannot be written to.
    """

    def __init__(
        self,
        path: str,
        expected: frozenset[str],
        origin: int = 0,
        *,
        late_start: int = _WAIT,
        live: bool = False,
    ) -> None:
        self.path, self.origin = path, origin
        self.to_url = bool(_URL.match(path))
        self._late_start = late_start
        self.skipped = 0  # pictures whose time did not move on
        self._kind = container_of(path)
        kinds = {"video": self._kind.video, "audio": self._kind.audio}
        self._expected = {kind for kind, codec in kinds.items() if codec and kind in expected}
        hls = self._kind.format == "hls"
        self._watched = self._kind.live or (live and hls)
        options = dict(self._kind.options) | (_HLS[live] if hls else {})
        # a list and its segments name each other: they are written in place
        self._part = path if hls or self.to_url else _part_of(path)
        self._pipe: SrtPipe | None = None
        if not self.to_url:
            try:
                Path(self._part).touch()
            except OSError as e:
                raise StageError(f"cannot write {shown(path)!r}: {e.strerror}") from e
        elif path.lower().startswith("srt:"):
            self._pipe = SrtPipe(path, reading=False)
        target = self._pipe or self._part
        try:
            self._out: Any = av.open(target, "w", format=self._kind.format, options=options, timeout=(10, 10))
        except (av.error.FFmpegError, OSError) as e:
            raise StageError(f"cannot write {shown(path)!r}: {e.strerror or e}") from e
        self._video: Any = None
        self._audio: Any = None
        self._held: list[Any] = []  # packets until the header can be written
        self._held_bytes = 0
        self._started = self._done = self._broken = False
        self._last_tick = -1
        self._newest = 0  # pts of the newest picture or sound, ns from origin
        self._samples = 0  # of sound written since origin
        self._resampler: Any = None
        self._resampled = (0, 0)  # rate and channels that the resampler takes

    def video(self, frame: VideoFrame) -> None:
        """Encode a picture. Later pictures are fitted to the size of the first."""
        if not self._kind.video or self._done:
            return
        at = frame.pts - self.origin
        tick = round(at * 90_000 / SECOND)
        if tick <= self._last_tick or at < 0:
            self.skipped += 1
            return
        image = to_i420(frame)
        if self._video is None:
            if self._started:
                return
            self._video = self._add_video(image.shape[1], image.shape[0] * 2 // 3)
        width, height = self._video.width, self._video.height
        if image.shape != (height * 3 // 2, width):
            fitted = cv2.resize(to_rgb(frame), (width, height), interpolation=cv2.INTER_AREA)
            image = to_i420(VideoFrame(pts=0, image=np.asarray(fitted, np.uint8)))
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="yuv420p")
        picture.pts, picture.time_base = tick, _TICKS
        self._last_tick, self._newest = tick, max(self._newest, at)
        self._write(self._video.encode(picture))
        if self._audio is not None and at - self._samples * SECOND // self._audio.rate > _LAG:
            self._silence(at - _LAG // 2)

    def audio(self, frame: AudioFrame) -> None:
        """Encode sound at its time: a gap becomes silence, sound that comes too early follows what is there."""
        if not self._kind.audio or self._done or not len(frame.pcm):
            return
        if self._audio is None:
            self._audio = self._add_audio(frame.rate_hz, frame.pcm.shape[1])
        at = frame.pts - self.origin
        if at > self._samples * SECOND // self._audio.rate + _SLACK:
            self._silence(at)
        self._newest = max(self._newest, at)
        self._sound(self._fit(frame))

    def finish(self) -> bool:
        """Write all that is held and give the file its name. False when nothing came: then there is no file.

        Raises: StageError when the end could not be written; what was written before has the file's name.
        """
        # of a stream to a URL nothing is lost that its readers do not lose anyway
        with contextlib.nullcontext() if self.to_url else completing():
            return self._finish()

    def _finish(self) -> bool:
        if self._done:
            return True
        self._done = True
        if self._video is None and self._audio is None:
            self.abort()
            return False
        try:
            if self._broken:  # a disk that is full holds what it holds
                with contextlib.suppress(av.error.FFmpegError, OSError):
                    self._out.close()
            else:
                self._flush_resampler()
                for stream in (self._video, self._audio):
                    if stream is not None:
                        self._write(stream.encode(None))
                self._start()
                self._tell(self._out.close)
        finally:
            if self._pipe:
                self._pipe.close()
            if self._part != self.path:
                os.replace(self._part, self.path)
        return True

    def abort(self) -> None:
        """Give up: no file is left. Idempotent, also after `finish`."""
        self._done = True
        self._held.clear()
        if not self._started:
            # closing writes no trailer where there was no header
            self._out.close()
        if self._pipe:
            self._pipe.close()
        if not self.to_url:
            Path(self._part).unlink(missing_ok=True)

    # ------------------------------------------------------------ encoding

    def _add_video(self, width: int, height: int) -> Any:
        name = self._kind.video
        options = dict(_ENCODER_OPTIONS.get(name, {})) | (_WATCHED if self._watched else {})
        stream = self._out.add_stream(name, rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.time_base = _TICKS
        context.thread_count = 2
        context.colorspace, context.color_range = 6, 1  # BT.601, limited: what to_i420 makes
        return stream

    def _add_audio(self, rate_hz: int, channels: int) -> Any:
        name = self._kind.audio
        rates = _RATES.get(name)
        if rates and rate_hz not in rates:
            rate_hz = 48_000
        layout = "mono" if channels == 1 else "stereo"
        options = dict(_ENCODER_OPTIONS.get(name, {}))
        return self._out.add_stream(name, rate=rate_hz, layout=layout, options=options)

    def _fit(self, frame: AudioFrame) -> NDArray[np.int16]:
        """The sound at the track's rate and channels, (T, C)."""
        rate, channels = self._audio.rate, self._audio.layout.nb_channels
        given = (frame.rate_hz, int(frame.pcm.shape[1]))
        if given == (rate, channels):
            self._flush_resampler()
            return frame.pcm
        if given != self._resampled:
            self._flush_resampler()
            layout = "mono" if channels == 1 else "stereo"
            self._resampler = av.AudioResampler(format="s16", layout=layout, rate=rate)
            self._resampled = given
        blocks = self._resampler.resample(_packed(frame.pcm, frame.rate_hz))
        return _joined(blocks, channels)

    def _flush_resampler(self) -> None:
        if self._resampler is not None:
            rest = _joined(self._resampler.resample(None), self._audio.layout.nb_channels)
            self._resampler, self._resampled = None, (0, 0)
            self._sound(rest)

    def _silence(self, until: int) -> None:
        missing = until * self._audio.rate // SECOND - self._samples
        while missing > 0:  # a second at a time: a pause may be an hour
            count = min(missing, self._audio.rate)
            self._sound(np.zeros((count, self._audio.layout.nb_channels), np.int16))
            missing -= count

    def _sound(self, pcm: NDArray[np.int16]) -> None:
        if not len(pcm):
            return
        frame = _packed(pcm, self._audio.rate)
        frame.pts, frame.time_base = self._samples, Fraction(1, self._audio.rate)
        self._samples += len(pcm)
        self._write(self._audio.encode(frame))

    # ------------------------------------------------------------ writing

    def _write(self, packets: list[Any]) -> None:
        if self._started:
            self._mux(packets)
            return
        self._held += packets
        self._held_bytes += sum(p.size for p in packets)
        begun = {k for k, s in (("video", self._video), ("audio", self._audio)) if s is not None}
        if self._expected <= begun or self._newest > self._late_start or self._held_bytes > _WAIT_BYTES:
            if "audio" in self._expected and self._audio is None:
                self._audio = self._add_audio(48_000, 1)  # it may still begin: a voice that answers late
            self._start()

    def _start(self) -> None:
        if self._started:
            return
        self._started = True
        held, self._held = self._held, []
        held.sort(key=lambda p: (p.dts or 0) * p.time_base)
        self._mux(held)

    def _mux(self, packets: list[Any]) -> None:
        self._tell(self._out.mux, packets)

    def _tell(self, write: Callable[..., None], *args: Any) -> None:
        try:
            write(*args)
        except (av.error.FFmpegError, OSError) as e:
            self._broken = True
            said = self._pipe.why() if self._pipe else ""
            raise StageError(f"cannot write {shown(self.path)!r}: {said or e.strerror or e}") from e


def _part_of(path: str) -> str:
    return str(Path(path).with_suffix(f".part{Path(path).suffix}"))


def _packed(pcm: NDArray[np.int16], rate_hz: int) -> Any:
    layout = "mono" if pcm.shape[1] == 1 else "stereo"
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(pcm).reshape(1, -1), format="s16", layout=layout)
    frame.sample_rate = rate_hz
    return frame


def _joined(blocks: list[Any], channels: int) -> NDArray[np.int16]:
    parts = [block.to_ndarray().reshape(-1, channels) for block in blocks]
    return np.concatenate(parts).astype(np.int16, copy=False) if parts else np.zeros((0, channels), np.int16)
