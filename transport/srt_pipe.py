"""SRT through the program `ffmpeg`: the FFmpeg that comes with PyAV is built without libsrt. Blocking.

MPEG-TS goes through a pipe, so that nothing is encoded twice. Source: SRT as FFmpeg's `srt://` protocol takes it
(`srt://host:port?mode=listener&latency=…`).
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import tempfile
from typing import IO

from ..pipeline.stage import StageError

GOODBYE_S = 2.0  # to send what is in the pipe
# what comes is known: it is not looked at for seconds before the first byte is sent
_KNOWN = ("-probesize", "32768", "-analyzeduration", "200000")


def _lingering(url: str) -> str:
    """SRT's live mode forgets what is under way when its socket is closed, unless told to stay."""
    return url if "linger=" in url else f"{url}{'&' if '?' in url else '?'}linger={GOODBYE_S:.0f}"


class SrtPipe:
    """The local end, a file for `av.open`. timeout_s: of a source that sends nothing.

    Raises, when made: StageError without the program.
    """

    def __init__(self, url: str, *, reading: bool, timeout_s: float = 10.0) -> None:
        program = shutil.which("ffmpeg")
        if program is None:
            raise StageError(f"{url!r} needs the program ffmpeg, built with SRT (Debian: apt install ffmpeg)")
        self.url = url
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the pipe
        ends = ["-f", "mpegts", "-i", url if reading else "pipe:0"]
        to = ["-c", "copy", "-flush_packets", "1", "-f", "mpegts", "pipe:1" if reading else _lingering(url)]
        low = ["-fflags", "nobuffer", *([] if reading else _KNOWN)]
        self._process = subprocess.Popen(
            [program, "-nostdin", "-hide_banner", "-loglevel", "error", *low, *ends, *to],
            stdin=subprocess.DEVNULL if reading else subprocess.PIPE,
            stdout=subprocess.PIPE if reading else subprocess.DEVNULL,
            stderr=self._said,
        )
        file: IO[bytes] | None = self._process.stdout if reading else self._process.stdin
        assert file is not None
        self._file = file
        self._timeout_s = timeout_s

    def read(self, count: int) -> bytes:
        """At most `count` bytes, b"" at the end. Raises: TimeoutError."""
        if not select.select([self._file], [], [], self._timeout_s)[0]:
            raise TimeoutError
        return os.read(self._file.fileno(), count)

    def write(self, data: bytes) -> int:
        """All of it. Raises: BrokenPipeError when the program has given up."""
        self._file.write(data)
        self._file.flush()
        return len(data)

    def why(self) -> str:
        """What the program said last, in one line; empty when nothing."""
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else ""

    def close(self) -> None:
        """Idempotent; bounded by `GOODBYE_S`."""
        if self._said.closed:
            return
        with contextlib.suppress(BrokenPipeError):  # the program has ended before
            self._file.close()
        try:
            self._process.wait(GOODBYE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._said.close()
