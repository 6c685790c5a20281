"""One session's end of the talk about what its pictures are for: docs/protocol.md, "What the model looks at".

It hears the graph's events (`importance`, `fetch`) and the client (LOOK, CAPS, STILL), and tells the sender where the
bits belong (IMP), how much is of use (RATE), and what to cut out of its last seconds (FETCH).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ..pipeline.clock import MS, SECOND, Clock
from ..pipeline.event_plan import INNER
from ..pipeline.frame import VideoFrame
from ..pipeline.graph import Plan
from .allocator import Grant, Stream
from .attention import UNIFORM, Attention, aged, changed
from .capture_clock import MinWindow
from .consumers import consumed_fps
from .importance import Box, ImportanceMap, Source, clip_box
from .ingress import Mailbox
from .rt_messages import Caps, Fetch, Imp, Look, NoStill, Rate, Roi, Still, parse
from .stills import decode_still
from .worth import CONTEXT_FPS, Worth

log = logging.getLogger(__name__)

TICK = SECOND // 4
IMP_APART = SECOND  # between two maps, but for one that the user drew
REFRESH = 0.6  # of a map's time to live, then it is sent again: the channel may lose it
RATE_EVERY = 2 * SECOND
INTRODUCED = 3 * SECOND  # in which a client tells its CAPS, connecting included
FIRST_RATE = SECOND // 2  # that CAPS may take before it
MAX_MESSAGES = 30  # a second, that are read
MAX_PENDING = 8  # FETCHes under way
FETCH_DEADLINE_MS = 1500
FETCH_BYTES = 12_000
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


class Channel(Protocol):
    """An open data channel (aiortc's)."""

    @property
    def readyState(self) -> str: ...
    @property
    def bufferedAmount(self) -> int: ...
    def send(self, data: bytes) -> None: ...
    def on(self, event: str, f: Callable[..., object]) -> Any: ...


@dataclass(slots=True)
class FocusFigures:
    imps: int = 0
    rates: int = 0
    fetches: int = 0
    stills: int = 0
    still_bytes: int = 0
    refused: int = 0  # messages that could not be read, or came too often


class Focus:
    """send: puts one JSON message on the reliable channel. watched: does the client get pictures back? sounds: does it
    send sound?

    Attributes: `worth`, what its bits are worth and what it may use; `stills`, VideoFrames that came.
    """

    def __init__(
        self,
        name: str,
        plan: Plan,
        clock: Clock,
        send: Callable[..., None],
        watched: Callable[[], bool] = lambda: True,
        sounds: Callable[[], bool] = lambda: True,
    ) -> None:
        self.name = name
        self.clock = clock
        self.attention = Attention()
        self.figures = FocusFigures()
        self.caps: Caps | None = None
        self.worth = Worth(name, plan)
        self.joined: Callable[[], None] = lambda: None  # another stream is to be granted bits
        self.stills = Mailbox(4)
        self._plan = plan
        self._send = send
        self._watched = watched
        self._sounds = sounds
        self._offset = MinWindow()  # our clock − the sender's, by the fastest CAPS, ns
        self._channel: Channel | None = None
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._received: deque[int] = deque(maxlen=MAX_MESSAGES)
        self._map: ImportanceMap | None = None  # as it was last sent
        self._imp_at = self._rate_at = -(1 << 62)
        self._opened_at = 0
        self._born = clock.now()
        self._imp_seq = self._rate_seq = self._fetch_id = 0
        self._rate: tuple[int, float, int] | None = None  # as it was last told
        self._pending: dict[int, asyncio.Future[Still]] = {}
        self._fetching: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------ the graph's side

    def told(self, name: str, fields: Mapping[str, Any]) -> bool:
        """An event of the session; True when it was for us and for no one else."""
        if name == "answered":
            self.worth.answered(fields, self.caps, self.fps, self.clock.now())
        if name not in INNER:
            return False
        try:
            if name == "importance":
                self.attention.told(fields, self.clock.now())
                self._wake.set()
            else:
                self._wanted(fields)
        except ValueError as e:
            log.warning("%s: an event was not understood: %s", self.name, e)
        return True

    @property
    def is_new(self) -> bool:
        """Its client may yet say that it can be told its rate."""
        # one that has opened the channel speaks; its first CAPS may have been lost
        waits = self._channel is not None or self.clock.now() - self._born < INTRODUCED
        return self.caps is None and waits

    def streams(self, now: int) -> list[Stream]:
        """What it asks of the budget, a stream for each track; none when its client cannot be told."""
        if self._channel is None:
            return []
        return self.worth.streams(self.caps, self.fps, now, self._sounds())

    def grants(self, granted: Mapping[str, Grant]) -> None:
        """Of the budget."""
        self.worth.grants(granted, self._watched())

    def _wanted(self, fields: Mapping[str, Any]) -> None:
        """A `fetch` event: box (left out: where attention is, else the whole picture), pts (left out: the newest)."""
        box = WHOLE
        if (given := fields.get("box")) is not None:
            clipped = clip_box(given) if isinstance(given, list | tuple) else None
            if clipped is None:
                raise ValueError(f"fetch: box {given!r:.60} has nothing of the picture")
            box = clipped
        pts = fields.get("pts")
        task = asyncio.create_task(
            self._fetch_for_graph(box, pts if isinstance(pts, int) else None), name=f"{self.name}/fetch"
        )
        self._fetching.add(task)
        task.add_done_callback(self._fetching.discard)

    async def _fetch_for_graph(self, box: Box, pts: int | None) -> None:
        try:
            self.stills.put_nowait(await self.fetch(box, pts))
        except (ValueError, TimeoutError) as e:
            log.info("%s: no still: %s", self.name, e or "it did not come in time")

    async def fetch(
        self,
        box: Box,
        pts: int | None = None,
        max_bytes: int = FETCH_BYTES,
        deadline_ms: int = FETCH_DEADLINE_MS,
    ) -> VideoFrame:
        """A still of the box, as it was at pts (session clock), cut out by the sender. rgb24, of the box only.

        Raises: ValueError when the sender has none, TimeoutError.
        """
        if self.caps is None or not self.caps.fetch:
            raise ValueError("the sender keeps no pictures to fetch from")
        if len(self._pending) >= MAX_PENDING:
            raise ValueError(f"{MAX_PENDING} are under way already")
        self._fetch_id += 1
        fetch = Fetch(
            self._fetch_id, box, None if pts is None else self._sender_ms(pts), max_bytes, deadline_ms
        )
        came: asyncio.Future[Still] = asyncio.get_running_loop().create_future()
        self._pending[fetch.id] = came
        try:
            self._send("fetch", **fetch.fields())
            self.figures.fetches += 1
            async with asyncio.timeout(deadline_ms / 1000):
                still = await came
        finally:
            self._pending.pop(fetch.id, None)
        # a deadline bounds the wait, decoding 12 kB is a ms
        image = await asyncio.get_running_loop().run_in_executor(None, decode_still, still)
        return VideoFrame(pts=self._session_pts(still.capture_ms), image=image)

    # ------------------------------------------------------------ the client's side

    def opened(self, channel: Channel) -> None:
        """Its `penstock-rt` is open."""
        self._channel = channel
        self._opened_at = self.clock.now()
        self._map = self._rate = None
        channel.on("message", self.receive)
        channel.on("close", lambda: self._gone(channel))
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"{self.name}/focus")
        self._wake.set()

    def _gone(self, channel: Channel) -> None:
        if self._channel is channel:
            self._channel = None

    def receive(self, data: str | bytes) -> bool:
        """A message of `penstock-rt`, or a binary one of `penstock`. False when it is text, and not for us."""
        if isinstance(data, str):
            return False
        now = self.clock.now()
        if len(self._received) == MAX_MESSAGES and now - self._received[0] < SECOND:
            self.figures.refused += 1
            return True
        self._received.append(now)
        try:
            self._act(parse(data), now)
        except ValueError as e:
            self.figures.refused += 1
            log.debug("%s: %s", self.name, e)
        return True

    def _act(self, message: object, now: int) -> None:
        match message:
            case Caps():
                new = self.caps is None or self.caps.cropping != message.cropping
                self.caps = message
                self._offset.add(now - message.now_ms * MS, now)
                if new:
                    self.joined()  # the first RATE is to hold its share already
                    self._wake.set()
            case Look(box=box, ttl_ms=ttl_ms):
                self.attention.look(box, ttl_ms * MS, now)
                self._wake.set()
            case Still(id=id_) if (waiting := self._pending.get(id_)) is not None and not waiting.done():
                self.figures.stills += 1
                self.figures.still_bytes += len(message.data)
                waiting.set_result(message)
            case NoStill(id=id_, why=why) if (waiting := self._pending.get(id_)) and not waiting.done():
                waiting.set_exception(ValueError(why))
            case _:
                self.figures.refused += 1

    def _sender_ms(self, pts: int) -> int:
        offset = self._offset.value or 0
        return max(0, (pts - offset) // MS) & 0xFFFFFFFF

    def _session_pts(self, capture_ms: int) -> int:
        """Never in the future: a sender may say what it likes."""
        return max(0, min(self.clock.now(), capture_ms * MS + (self._offset.value or 0)))

    # ------------------------------------------------------------ telling the sender

    async def _run(self) -> None:
        while True:
            self._tell(self.clock.now())
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK / SECOND):
                    await self._wake.wait()

    def _tell(self, now: int) -> None:
        channel = self._channel
        if channel is None or channel.readyState != "open" or channel.bufferedAmount > 4096:
            return
        if (imp := self._imp(now)) is not None:
            channel.send(imp.pack())
            self.figures.imps += 1
        if (rate := self._due_rate(now)) is not None:
            channel.send(rate.pack())
            self.figures.rates += 1

    def _imp(self, now: int) -> Imp | None:
        current, last = self.attention.current(now), self._map
        new = changed(last, current)
        due = new or (
            current is not None
            and last is not None
            and current.at > last.at
            and now - self._imp_at > REFRESH * last.ttl
        )
        urgent = new and Source.user in {m.source for m in (current, last) if m is not None}
        if not due or (now - self._imp_at < IMP_APART and not urgent):
            return None
        self._map, self._imp_at = current, now
        self._imp_seq += 1
        shown = aged(current, now) if current is not None else UNIFORM
        return Imp(
            shown.grid, shown.confidence, self._imp_seq, self._sender_ms(now), shown.ttl // MS, int(shown.dqp_max),
            shown.source,
        )  # fmt: skip

    @property
    def fps(self) -> float:
        """What the graph looks at."""
        return consumed_fps(self._plan, self._watched()) or 30.0

    def _due_rate(self, now: int) -> Rate | None:
        cropping = self.caps is not None and self.caps.cropping
        kbps, context = self.worth.kbps, self.worth.context_kbps if cropping else 0
        wanted = kbps, self.fps, context
        if self._rate is None and self.caps is None and now - self._opened_at < FIRST_RATE:
            return None  # a sender that waits for it is to learn its share at once
        if wanted == self._rate and now - self._rate_at < RATE_EVERY:
            return None
        self._rate, self._rate_at = wanted, now
        self._rate_seq += 1
        return Rate(self._rate_seq, kbps, self.fps, 0, context, CONTEXT_FPS if cropping else 0.0)

    # ------------------------------------------------------------ the end, and figures

    def close(self) -> None:
        """Idempotent."""
        for task in (self._task, *self._fetching):
            if task is not None:
                task.cancel()
        for waiting in self._pending.values():
            waiting.cancel()
        self.stills.put_nowait(None)
        self._channel = None

    def stats(self) -> dict[str, Any]:
        """docs/protocol.md, `transport.focus`."""
        now = self.clock.now()
        current = self.attention.current(now)
        caps, granted = self.caps, self.worth.grant
        f = self.figures
        return {
            "source": current.source.name if current is not None else "none",
            "confidence": round(current.confidence, 2) if current is not None else 0.0,
            "dqp": round(current.dqp(now), 1) if current is not None else 0.0,
            "fps": round(self.fps, 2),
            "kbps": self.worth.kbps,
            "why": granted.why if granted is not None else "free",
            "expected": round(granted.accuracy, 2) if granted is not None else None,
            "tracks": self.worth.explained(),
            "q50_kb": round(self.worth.learner.q50, 1),
            "answers": self.worth.learner.answers,
            "sender": (caps.roi if caps is not None else Roi.none).name,
            "sender_dqp": caps.dqp if caps is not None else 0,
            "sender_kbps": caps.sent_kbps if caps is not None else 0,
            "path_kbps": caps.path_kbps if caps is not None else 0,
            "cropping": caps is not None and caps.cropping,
            "imps": f.imps,
            "fetches": f.fetches,
            "stills": f.stills,
            "still_bytes": f.still_bytes,
            "refused": f.refused,
        }
