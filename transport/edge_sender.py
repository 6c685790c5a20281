"""What an edge client does with the far end's wishes: no sockets, so that all of it can be tested.

`EdgeSender` keeps the importance map in force, thins the camera to the rate that the far end samples, answers FETCH
from its ring, and tells what it can do.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from ..pipeline.clock import MS, SECOND, Clock
from ..pipeline.frame import VideoFrame
from .crop_track import Cells
from .edge_crop import CONTEXT_FPS, CONTEXT_KBPS, choose, context_of, crop_of
from .encoders import VideoEncoder
from .importance import ImportanceMap
from .picture_rate import FrameGate
from .roi_encoder import RoiEncoder
from .rt_messages import Caps, Fetch, Imp, NoStill, Rate, Roi, Still, parse, parse_fetch
from .stills import RING, PictureRing, answer
from .uplink import PAYLOAD_SHARE
from .video_out import VideoOut

log = logging.getLogger(__name__)

TELL_EVERY = 5 * SECOND  # at least, between two words on cropping: it may come and go with what moves

MAX_MESSAGES = 50  # a second, of the far end's; more are not read
MAX_FETCHES = 4  # under way
FETCH_RATE = 10  # a second
FIRST_RATE = SECOND  # that a far end may take to tell its rate; one that speaks none of this gets all
WORN = 60 * SECOND  # a map of a picture older than that: the clocks disagree, its arrival counts


class EdgeOut(VideoOut):
    """A camera's track: with regions, at no more than `fps`, which the far end may lower."""

    def __init__(self, current: Callable[[], ImportanceMap | None], fps: float, most_bps: int = 0) -> None:
        super().__init__()
        self.fps = self.most_fps = fps
        self.most_bps = self.limit_bps = most_bps
        self.encoder: RoiEncoder | None = None
        self._current = current
        self._gate = FrameGate()

    def make_encoder(self, codec: str, bitrate_bps: int) -> VideoEncoder:
        self.encoder = RoiEncoder(codec, bitrate_bps, self._current, self.fps)
        return self.encoder

    def show(self, frame: VideoFrame, draw: Callable[[VideoFrame], VideoFrame] | None = None) -> None:
        """draw: makes what is sent of it."""
        if not self._gate(frame.pts, self.fps):
            return  # nobody would have looked at it
        fps = self.fps
        super().show(draw(frame) if draw is not None else frame)
        self.fps = fps  # told, not measured

    def follow(self, rate: Rate) -> None:
        self.fps = min(self.most_fps, rate.fps)
        wanted = round(rate.kbps * 1000 * PAYLOAD_SHARE)  # what it was granted holds headers and repeats too
        self.limit_bps = min(filter(None, (wanted, self.most_bps)), default=0)
        self.keyframe_gap = rate.kf_gap_ms * MS
        if self.encoder is not None:
            self.encoder.fps = self.fps


class EdgeSender:
    """codec: "h264" or "vp8". reply: sends one binary message on the reliable channel.

    While `crops`, what matters goes out by `crop_out` and the whole picture small by `out`, as long as a map is worth it.
    Messages that cannot be read are counted in `errors` and change nothing.
    """

    def __init__(
        self, codec: str, fps: float, clock: Clock, reply: Callable[[bytes], None], most_bps: int = 0
    ) -> None:
        self.clock = clock
        self.most_bps = most_bps
        self.roi = Roi.x264 if codec.lower() == "h264" else Roi.vp8
        self.out = EdgeOut(lambda: None if self.cells else self.map, fps, most_bps)
        self.crop_out = EdgeOut(lambda: None, fps)
        self.crops = False  # does the far end take two tracks?
        self.cells: Cells | None = None  # that are cut out now
        self.map: ImportanceMap | None = None
        self.rate: Rate | None = None
        self.ring = PictureRing()
        self.on_rate: Callable[[Rate], None] = lambda rate: None
        self.on_crop: Callable[[bool], None] = lambda cropping: None
        self._told: tuple[bool | None, int] = None, 0  # of `on_crop`, and when
        self.errors = 0
        self._reply = reply
        self._size = (0, 0)
        self._first: int | None = None  # pts of the first picture
        self._caps_seq = 0
        self._made = (0, clock.now())  # bytes, when
        self._heard: deque[int] = deque(maxlen=MAX_MESSAGES)
        self._fetched: deque[int] = deque(maxlen=FETCH_RATE)
        self._fetching: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------ pictures

    def picture(self, frame: VideoFrame) -> None:
        """One of the camera's, each of them."""
        self._size = frame.width, frame.height
        self.ring.add(frame)
        if self._first is None:
            self._first = frame.pts
        # the first RATE is on its way: an encoder opened for another would begin with two keyframes
        if self.rate is not None or frame.pts - self._first >= FIRST_RATE:
            self._show(frame)

    def _show(self, frame: VideoFrame) -> None:
        last = self.cells
        cells = self.cells = (
            choose(last, self.map, self.clock.now(), frame.width, frame.height) if self.crops else None
        )
        if (cells is None) != (last is None):
            self._tune()
        if self.crops:
            self._tell(cells is not None)
        if cells is None:
            self.out.show(frame)
        else:
            self.crop_out.show(frame, lambda whole: crop_of(whole, cells))
            self.out.show(frame, context_of)

    def _tell(self, cropping: bool) -> None:
        told, at = self._told
        now = self.clock.now()
        if cropping != told and (told is None or now - at >= TELL_EVERY):
            self._told = cropping, now
            self.on_crop(cropping)

    def _tune(self) -> None:
        """What was granted, onto the tracks that are sent."""
        rate = self.rate or Rate(fps=self.out.most_fps)
        if self.cells is None:
            self.out.most_bps = self.most_bps
            self.out.follow(rate)
            return
        context = Rate(
            kbps=rate.context_kbps or CONTEXT_KBPS,
            fps=rate.context_fps or CONTEXT_FPS,
            kf_gap_ms=rate.kf_gap_ms,
        )
        # before the far end divides them, both are to fit into what it gave the whole picture
        kbps = (
            rate.kbps if rate.context_kbps or not rate.kbps else max(rate.kbps - context.kbps, rate.kbps // 2)
        )
        self.out.follow(context)
        self.crop_out.beside_bps = self.out.limit_bps
        self.crop_out.most_bps = max(self.most_bps - self.out.limit_bps, self.most_bps // 2)
        self.crop_out.follow(replace(rate, kbps=kbps))

    def caps(self, path_kbps: int = 0) -> Caps:
        """path_kbps: 0 while it is not known."""
        self._caps_seq += 1
        encoders = [out.encoder for out in (self.out, self.crop_out) if out.encoder is not None]
        now, made = self.clock.now(), sum(encoder.bytes for encoder in encoders)
        before, then = self._made
        self._made = made, now
        return Caps(
            roi=self.roi,
            seq=self._caps_seq,
            now_ms=now // MS,
            crop=self.crops,
            cropping=self.cells is not None,
            fetch=True,
            ring_ms=RING // MS,
            width=self._size[0],
            height=self._size[1],
            imp_seq=self.map.seq if self.map is not None else 0,
            dqp=round(self._dqp(now)),
            path_kbps=path_kbps,
            sent_kbps=round((made - before) * 8 * MS / max(MS, now - then)),
        )

    def _dqp(self, now: int) -> float:
        """That the map in force is worth, by regions or by what is cut out."""
        if self.cells is not None:
            return self.map.dqp(now) if self.map is not None else 0.0
        return self.out.encoder.dqp if self.out.encoder is not None else 0.0

    # ------------------------------------------------------------ what the far end says

    def receive(self, data: str | bytes) -> None:
        """A message of `penstock-rt`."""
        now = self.clock.now()
        if len(self._heard) == MAX_MESSAGES and now - self._heard[0] < SECOND:
            self.errors += 1
            return
        self._heard.append(now)
        try:
            message = parse(data if isinstance(data, bytes) else data.encode())
        except ValueError as e:
            self._refuse(e)
            return
        if isinstance(message, Imp):
            self._imp(message, now)
        elif isinstance(message, Rate) and (self.rate is None or _newer(message.seq, self.rate.seq)):
            self.rate = message
            self._tune()
            self.on_rate(message)

    def _imp(self, imp: Imp, now: int) -> None:
        if self.map is not None and not _newer(imp.seq, self.map.seq):
            return  # out of order
        age = ((now // MS - imp.capture_ms) & 0xFFFFFFFF) * MS
        at = now - age if age < WORN else now
        self.map = ImportanceMap(
            imp.grid, imp.confidence, at, imp.ttl_ms * MS, imp.dqp_max, imp.source, imp.seq
        )

    def fetch(self, message: object) -> None:
        """A FETCH, as its JSON object. Answers later, by `reply`; a bad or too frequent one at once."""
        now = self.clock.now()
        try:
            fetch = parse_fetch(message)
        except ValueError as e:
            self._refuse(e)
            id_ = message.get("id") if isinstance(message, dict) else None
            if isinstance(id_, int) and 0 <= id_ <= 0xFFFFFFFF:
                self._reply(NoStill(id_, str(e)).pack())
            return
        hurried = len(self._fetched) == FETCH_RATE and now - self._fetched[0] < SECOND
        if hurried or len(self._fetching) >= MAX_FETCHES:
            self.errors += 1
            self._reply(NoStill(fetch.id, f"too many: {FETCH_RATE} a second are taken").pack())
            return
        self._fetched.append(now)
        task = asyncio.create_task(self._answer(fetch, now), name="edge/fetch")
        self._fetching.add(task)
        task.add_done_callback(self._fetching.discard)

    async def _answer(self, fetch: Fetch, came: int) -> None:
        frame = self.ring.at(self._pts(fetch.capture_ms))
        found: Still | NoStill = await asyncio.get_running_loop().run_in_executor(
            None, answer, fetch, frame, _ms
        )
        if self.clock.now() - came > fetch.deadline_ms * MS:
            found = NoStill(fetch.id, "its deadline has passed")
        self._reply(found.pack())

    def _pts(self, capture_ms: int | None) -> int | None:
        """Of ms modulo 2^32, the time nearest to now."""
        if capture_ms is None:
            return None
        now_ms = self.clock.now() // MS
        behind = (now_ms - capture_ms) & 0xFFFFFFFF
        return (now_ms - (behind if behind < 1 << 31 else behind - (1 << 32))) * MS

    def _refuse(self, error: ValueError) -> None:
        self.errors += 1
        log.debug("a message was refused: %s", error)

    def close(self) -> None:
        for task in self._fetching:
            task.cancel()
        self.out.stop()
        self.crop_out.stop()


def fetch_of(raw: str) -> object | None:
    """The object of a FETCH on `penstock`; None when it is any other message."""
    try:
        message = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) and message.get("type") == "fetch" else None


def _newer(seq: int, than: int) -> bool:
    """RFC 1982, 16 bits."""
    return 0 < (seq - than) & 0xFFFF < 0x8000


def _ms(pts: int) -> int:
    return pts // MS
