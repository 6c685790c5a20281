"""What a graph's live ends hold on to, while the connection under it may be lost and another take its place.

A peer comes (`attach`), is lost (`detach`), another comes. Chat lines wait for the graph all the while, and
speech that was not yet sent waits for `PATIENCE`; then it is played to nobody, at its own pace, so that the
graph never stands still.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from aiortc.mediastreams import MediaStreamError
from numpy.typing import NDArray

from ..pipeline.clock import MS, SECOND, Clock
from ..pipeline.frame import VideoFrame
from .audio_out import AudioOut
from .broadcast import Broadcast
from .ingress import Mailbox
from .peer import Peer
from .video_out import VideoOut

OnStep: TypeAlias = Callable[[int, int, NDArray[np.int16] | None, int, list[tuple[int, str]]], None]

Fit: TypeAlias = Callable[[Counter[str]], Callable[[Any], Any]]

CHAT_LINES = 64  # that wait for the graph
PATIENCE = 3 * SECOND  # a page that comes back usually needs one; a stage that waits 10 s counts as hung


class Line:
    """chat: lines of text for the graph, None at the end. fits: by kind, makes of a new track's counts what turns its
    decoded frames into the graph's. ahead, live: of the sound to the peer, see `AudioOut`."""

    def __init__(self, clock: Clock, peer: Peer | None = None) -> None:
        self.clock = clock
        self.chat = Mailbox(CHAT_LINES)
        self.fits: dict[str, Fit] = {}
        self.ahead = 60 * MS
        self.live = False
        self.on_step: OnStep | None = None
        self.closed = False
        self.broadcast = Broadcast(clock)  # to all who watch beside the peer
        self._peer: Peer | None = None
        self._held: AudioOut | None = None  # takes the sound while nobody is there
        self._draining: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        if peer is not None:
            self.attach(peer)

    @property
    def peer(self) -> Peer | None:
        """The connection now; None while the far end is away."""
        return self._peer

    @property
    def sounds(self) -> bool:
        """Does the peer send sound that the graph takes?"""
        return self._peer is not None and "audio" in self._peer.tracks

    @property
    def video_out(self) -> VideoOut | None:
        return self._peer.video_out if self._peer is not None else None

    @property
    def audio_out(self) -> AudioOut | None:
        if self._peer is not None and self._peer.audio_out is not None:
            return self._peer.audio_out
        return self._held

    def show(self, frame: VideoFrame) -> None:
        """To the peer and to all who watch."""
        if self._peer is not None and self._peer.video_out is not None:
            self._peer.video_out.show(frame)
        self.broadcast.show(frame)

    def stand(self) -> None:
        """Sound is paced out although no peer hears it: somebody who watches does. Idempotent."""
        if self.audio_out is None and not self.closed:
            self._hold(AudioOut(self.clock, self.ahead, self.live), self.on_step or self._unheard, 0)

    def fit(self, kind: str, make: Fit) -> None:
        """From now on frames of that kind are turned by what `make` makes, one for each track."""
        self.fits[kind] = make
        if self._peer is not None and (track := self._peer.tracks.get(kind)) is not None:
            track.decoded.transform = make(track.counts)

    def set_audio(self, ahead: int, live: bool, on_step: OnStep | None = None) -> None:
        """on_step: told of what is played, see `Playback.step`; what nobody hears is silence to it."""
        self.ahead, self.live, self.on_step = ahead, live, on_step
        self.broadcast.stamps_capture = live
        if self.audio_out is not None:
            self._set_up(self.audio_out)
        if self.video_out is not None:
            self.video_out.stamps_capture = live

    def hold(self, until: int) -> None:
        """See `AudioOut.hold`."""
        if self.audio_out is not None:
            self.audio_out.hold(until)

    def _set_up(self, out: AudioOut) -> None:
        out.ahead, out.live, out.on_step = self.ahead, self.live, self.on_step
        out.tap = self.broadcast.hear

    def _unheard(
        self, at: int, samples: int, _: NDArray[np.int16] | None, waiting: int, said: list[tuple[int, str]]
    ) -> None:
        if self.on_step is not None:
            self.on_step(at, samples, None, waiting, [])

    def attach(self, peer: Peer) -> None:
        """The graph talks to this peer from now on; to the one before no more."""
        before = self.audio_out
        if self._peer is not None:
            self._end_tracks()
        self._peer = peer
        for kind, track in peer.tracks.items():
            if kind in self.fits:
                track.decoded.transform = self.fits[kind](track.counts)
        if peer.video_out is not None:
            peer.video_out.stamps_capture = self.live
        if (out := peer.audio_out) is not None:
            self._set_up(out)
            if before is not None:
                out.take_over(before)
        if out is not None or not self.broadcast.has_listeners:
            self._let_go()
        self._turn()

    def detach(self) -> None:
        """The far end is away: keep what waits for it."""
        if self._peer is None or self.closed:
            return
        self._end_tracks()
        if (out := self._peer.audio_out) is not None:
            held = AudioOut(self.clock, self.ahead, self.live)
            held.take_over(out)
            self._hold(held, self._unheard, 0 if self.broadcast.has_listeners else PATIENCE)
        self._peer = None
        self._turn()

    def close(self) -> None:
        """Nobody will come any more. Idempotent."""
        self.closed = True
        self.chat.put_nowait(None)
        if self._peer is not None:
            self._end_tracks()
        self._let_go()
        self.broadcast.close()
        self._turn()

    async def next(self, after: Peer | None) -> Peer | None:
        """The peer that took the place of `after`, waited for; None when none will come."""
        while not self.closed:
            if self._peer is not None and self._peer is not after:
                return self._peer
            await self._changed.wait()
        return None

    def _turn(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _hold(self, out: AudioOut, on_step: OnStep, after: int) -> None:
        """Sound goes there until a peer comes; after that many ns it is paced out."""
        self._held = out
        out.on_step, out.tap = on_step, self.broadcast.hear
        self._draining = asyncio.create_task(self._drain(out, after), name="line/away")

    def _end_tracks(self) -> None:
        assert self._peer is not None
        for track in self._peer.tracks.values():
            track.end()
        for out in (self._peer.video_out, self._peer.audio_out):
            if out is not None:
                out.stop()

    def _let_go(self) -> None:
        if self._draining is not None:
            self._draining.cancel()
            self._draining = None
        if self._held is not None:
            self._held.stop()
            self._held = None

    async def _drain(self, held: AudioOut, after: int) -> None:
        await self.clock.sleep(after)
        with contextlib.suppress(MediaStreamError):
            while True:
                await held.pull()
