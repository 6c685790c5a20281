"""Media on its way in, bounded at every step: encoded frames wait for a decoder thread, decoded ones for
the session. Both queues drop their oldest, so a track that nobody reads costs nothing.

aiortc's own worker and track queue without limit; these stand in their place (`RtpReceiver`, `_compat.install`).
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from aiortc.codecs import get_decoder
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from aiortc.rtcrtpreceiver import RemoteStreamTrack
from av.error import FFmpegError

from .capture_clock import CaptureClock
from .concealment import audio_decoder
from .jitter_buffer import EncodedFrame

log = logging.getLogger(__name__)

# frames that wait for the session: 133 ms of video at 30/s; a second of audio, as the packets that a stall held up
# come all at once, and what is too old for the graph is its edges' to say
DECODED = {"video": 4, "audio": 50}
ENCODED = 30  # frames that wait for the decoder: about a second of video
MAX_PIXELS = 4096 * 2304  # a picture of more is not decoded: one of 16383x16383 would take 400 MB


class Mailbox(asyncio.Queue[Any]):
    """A queue that drops its oldest when full. `None` means the end, and is kept."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.dropped = 0

    def put_nowait(self, item: Any) -> None:
        while self.qsize() >= self.capacity:
            if self.get_nowait() is None:  # already ended: nothing follows the end
                item = None
            else:
                self.dropped += 1
        super().put_nowait(item)

    async def put(self, item: Any) -> None:
        self.put_nowait(item)


class Decoded(Mailbox):
    """The decoded frames of one track. `transform`, run where they are decoded, turns each into what the
    track's `recv` gives; it may return None to drop it."""

    def __init__(self, kind: str = "video") -> None:
        super().__init__(DECODED[kind])
        self.transform: Callable[[Any], Any] | None = None


class IngressTrack(RemoteStreamTrack):
    """A track of the far end.

    counts: what became of its packets. capture: from media time to session time.
    """

    def __init__(self, kind: str, id: str | None = None) -> None:
        super().__init__(kind, id)
        self.decoded = Decoded(kind)
        self.counts: Counter[str] = Counter()
        self.capture = CaptureClock()
        self._queue = self.decoded  # what aiortc gives to the decoder's thread

    def end(self) -> None:
        """No more frames will come: wakes who waits in `recv`."""
        self.decoded.transform = None
        self.decoded.put_nowait(None)


def is_keyframe(codec: str, data: bytes) -> bool:
    """Can decoding start here? VP8: RFC 6386 section 9.1; H.264: an SPS or IDR NAL unit (RFC 6184)."""
    if codec == "VP8":
        return bool(data) and not data[0] & 1
    if codec == "H264":
        return any(start[:1] and start[0] & 31 in (5, 7) for start in data.split(b"\0\0\1")[1:])
    return True


def open_decoder(codec: RTCRtpCodecParameters) -> Any:
    """Something with `decode(encoded) -> list of av frames`. Raises: ValueError for an unknown codec."""
    if codec.mimeType.lower().startswith("audio/"):
        return audio_decoder(codec)
    decoder: Any = get_decoder(codec)
    decoder.codec.options = decoder.codec.options | {"max_pixels": str(MAX_PIXELS)}
    return decoder


def decode_loop(
    loop: asyncio.AbstractEventLoop,
    input_q: queue.SimpleQueue[Any],
    output_q: Decoded,
    decode_error: threading.Event,
) -> None:
    """Thread of one track: takes (codec, encoded frame), ends at None. decode_error: see `Decoding`."""
    decoding = Decoding(output_q, decode_error)
    waiting = False  # for a keyframe, after frames were dropped
    while (task := input_q.get()) is not None:
        if input_q.qsize() >= ENCODED:
            waiting = True
            decode_error.set()
            while not input_q.empty() and task is not None:
                task = input_q.get_nowait()
            if task is None:
                break
        codec: RTCRtpCodecParameters
        codec, encoded = task
        if waiting and not is_keyframe(codec.name, encoded.data):
            decode_error.set()
            continue
        waiting = False
        try:
            for item in decoding.step(codec, encoded):
                loop.call_soon_threadsafe(output_q.put_nowait, item)
        except RuntimeError:  # the loop has closed
            return
    try:
        loop.call_soon_threadsafe(output_q.put_nowait, None)
    except RuntimeError:  # the loop has closed
        return


class Decoding:
    """One track's decoder, of whatever codec comes. Sets `decode_error` to ask the sender for a keyframe."""

    def __init__(self, output_q: Decoded, decode_error: threading.Event) -> None:
        self._output = output_q
        self._error = decode_error
        self._decoder: Any = None
        self._name = ""

    def step(self, codec: RTCRtpCodecParameters, encoded: EncodedFrame) -> list[Any]:
        """What one frame gives, as the track's transform makes it."""
        items: list[Any] = []
        try:
            if codec.name != self._name:
                self._decoder, self._name = open_decoder(codec), codec.name
            for frame in self._decoder.decode(encoded):
                transform = self._output.transform
                item = transform(frame) if transform is not None else frame
                if item is not None:
                    items.append(item)
        except FFmpegError:
            self._error.set()  # keep the decoder: only a keyframe brings the picture back
        except Exception:  # boundary: a track of one session must not take its decoder down silently
            log.exception("a %s frame could not be taken", codec.name)
            self._error.set()
        return items


class DecodedHere:
    """Stands where a decoder's thread has its queue, for sound: a frame costs 50 us on the loop, a thread's waking and its
    word back to the loop cost more."""

    def __init__(self, output_q: Decoded, decode_error: threading.Event) -> None:
        self._output = output_q
        self._decoding = Decoding(output_q, decode_error)

    def put(self, task: tuple[RTCRtpCodecParameters, EncodedFrame] | None) -> None:
        if task is None:
            self._output.put_nowait(None)
        else:
            for item in self._decoding.step(*task):
                self._output.put_nowait(item)

    def qsize(self) -> int:
        return 0
