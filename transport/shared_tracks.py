"""One viewer's ends of a shared output: what has been encoded once for all, as its sender asks for it.

A queue that runs over is emptied whole: what follows a lost picture cannot be decoded before the next keyframe.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NoReturn, Protocol, TypeVar

from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

from ..pipeline.clock import SECOND
from .encoded_audio import Sound
from .rung_choice import RungChoice
from .video_out import VIDEO_RATE

T = TypeVar("T")

PICTURES = 10  # encoded ones that wait for one viewer's sender: a third of a second
SOUNDS = 10  # of 20 ms


@dataclass(frozen=True, slots=True)
class Encoded:
    """A picture in its codec's bytes. pts: its time, ns. captured: the same where sound has it too, see `VideoOut`."""

    data: bytes
    keyframe: bool
    pts: int
    captured: int | None


class Rung(Protocol):
    """What encodes for one or several viewers."""

    @property
    def bitrate_bps(self) -> int: ...
    def ask(self) -> None: ...
    def join(self, viewer: SharedVideo) -> None: ...
    def leave(self, viewer: SharedVideo) -> None: ...


class SharedTrack(MediaStreamTrack, Generic[T]):
    """Holds what is encoded already, for our own sender."""

    def __init__(self) -> None:
        super().__init__()
        self._queue: deque[T] = deque()
        self._fresh = asyncio.Event()

    async def wait(self) -> None:
        """Until there is something to send. Raises: MediaStreamError at the end."""
        while not self._queue:
            if self.readyState != "live":
                raise MediaStreamError
            self._fresh.clear()
            await self._fresh.wait()

    async def recv(self) -> NoReturn:
        """Only our own sender can send what is encoded already. Raises: MediaStreamError."""
        raise MediaStreamError

    def leave(self) -> None:
        """Nothing more comes."""
        raise NotImplementedError

    def stop(self) -> None:
        super().stop()
        self.leave()
        self._fresh.set()


class SharedVideo(SharedTrack[Encoded]):
    """rungs: by codec name and number; opened when somebody needs it. now: the clock's."""

    kind = "video"

    def __init__(self, rungs: Callable[[str, int], Rung], now: Callable[[], int]) -> None:
        super().__init__()
        self._rungs = rungs
        self._now = now
        self._codec = ""
        self._estimate: Callable[[], int] = int
        self._rung: Rung | None = None  # whose pictures it sends
        self._next: Rung | None = None  # whose it will send, from its next keyframe on
        self._broken = True  # nothing can be decoded before a keyframe
        self._first: int | None = None  # pts
        self._last = -1
        self.choice: RungChoice | None = None  # None until its connection can send
        self.limit_bps = 0  # see VideoOut
        self.sent = 0
        self.lost = 0  # pictures that it was too slow for

    @property
    def bps(self) -> int:
        """What its path carries, by the estimate."""
        estimate = self._estimate()
        return min(estimate, self.limit_bps) if self.limit_bps else estimate

    def join(self, codec: str, estimate: Callable[[], int]) -> None:
        """From now on encoded pictures come. estimate: bits/s, of the connection's uplink. Raises: ValueError for a codec
        that we do not encode."""
        self._codec, self._estimate = codec.upper(), estimate
        self.choice = RungChoice(self.bps, self._now())
        self._move(self._rungs(self._codec, self.choice.rung))

    def leave(self) -> None:
        for rung in {self._rung, self._next} - {None}:
            assert rung is not None
            rung.leave(self)
        self._rung = self._next = None

    def _move(self, rung: Rung) -> None:
        """Go over to another rung at its next keyframe; until then its present one's pictures come."""
        if self._next is not None and self._next is not self._rung:
            self._next.leave(self)
        self._next = rung if rung is not self._rung else None
        rung.join(self)
        if self._next is not None:
            rung.ask()

    def deliver(self, rung: Rung, picture: Encoded) -> None:
        """One that was encoded for all of that rung."""
        if rung is self._next and picture.keyframe:
            if self._rung is not None:
                self._rung.leave(self)
            self._rung, self._next = rung, None
        elif rung is not self._rung:
            return
        assert self.choice is not None
        if picture.keyframe:
            self.lost += len(self._queue)
            self._queue.clear()
            self._broken = False
        elif len(self._queue) >= PICTURES:
            self.lost += len(self._queue)
            self._queue.clear()
            self._broken = True
            self.choice.failed(self._now())
        if self._broken:
            self.lost += 1
            if self._next is None:
                rung.ask()
        else:
            self._queue.append(picture)
            self._fresh.set()
        self._choose(rung)

    def lose(self, rung: Rung) -> None:
        """That rung's encoder has failed: the end, unless another's pictures come and this one was only to be tried."""
        if rung is self._next and self._rung is not None:
            self._next = None
            assert self.choice is not None
            self.choice.failed(self._now())
        else:
            self.stop()

    def _choose(self, rung: Rung) -> None:
        assert self.choice is not None
        wanted = self._rungs(self._codec, self.choice.step(self.bps, rung.bitrate_bps, self._now()))
        if wanted is not (self._next or self._rung):
            self._move(wanted)

    def wake(self) -> None:
        """The far end needs a keyframe: packets of it were lost beyond repair."""
        if self.choice is not None and self._rung is not None:
            self.choice.asked(self._now())
            self._rung.ask()
            self._choose(self._rung)

    def take(self) -> tuple[Encoded, int] | None:
        """The next picture and its time, 1/90,000 s, always after the last; None when it is gone meanwhile."""
        if not self._queue:
            return None
        picture = self._queue.popleft()
        if self._first is None:
            self._first = picture.pts
        self._last = max(self._last + 1, (picture.pts - self._first) * VIDEO_RATE // SECOND)
        self.sent += 1
        return picture, self._last

    def skip(self) -> None:
        """What follows a picture that is not sent is of no use either."""
        self._queue.clear()
        self._broken = True


class SharedAudio(SharedTrack[Sound]):
    """leave: called when it ends."""

    kind = "audio"

    def __init__(self, leave: Callable[[SharedAudio], None]) -> None:
        super().__init__()
        self._leave = leave

    def deliver(self, sound: Sound) -> None:
        if len(self._queue) >= SOUNDS:
            self._queue.popleft()
        self._queue.append(sound)
        self._fresh.set()

    async def next(self) -> Sound:
        """Raises: MediaStreamError at the end."""
        await self.wait()
        return self._queue.popleft()

    def leave(self) -> None:
        self._leave(self)
