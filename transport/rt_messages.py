"""Messages between a sender and what its pictures are for: docs/protocol.md, "What the model looks at", version 1.

Binary, network byte order, each beginning with version and type. On the channel `penstock-rt` (unordered, no
repeats): IMP and RATE to the sender, CAPS from it. On `penstock` (reliable): FETCH to the sender as JSON, and
from it, binary, STILL, NO_STILL and LOOK. Parsers take anything and raise only ValueError.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from .importance import CELLS, GRID_H, GRID_W, Box, Source, clip_box

VERSION = 1
MAX_STILL = 60_000  # bytes of a picture: one message of a data channel
MAX_REASON = 200  # bytes of words
MAX_TTL_MS = 60_000

_HEAD = struct.Struct("!BB")
_IMP = struct.Struct("!BBHIHBBBBBx")  # … seq, capture_ms, ttl_ms, confidence, dqp_max, columns, rows, source
_RATE = struct.Struct("!BBHIHH")  # … seq, kbps, fps in 1/100, kf_gap_ms
_CONTEXT = struct.Struct("!IH")  # of RATE, where there are two tracks: kbps, fps in 1/100
_CAPS = struct.Struct(
    "!BBHIBBHHHHBII"
)  # … seq, now_ms, roi, flags, ring_ms, width, height, imp_seq, dqp, path, sent
_STILL = struct.Struct("!BBHIIHHHHHH")  # … reserved, id, capture_ms, x, y, w, h in 1/65535, width, height
_NO_STILL = struct.Struct("!BBHI")  # … reserved, id
_LOOK = struct.Struct("!BBHHHHHH")  # … reserved, ttl_ms, x, y, w, h in 1/65535
_U32 = 0xFFFFFFFF


class Kind(IntEnum):
    IMP = 1
    RATE = 2
    CAPS = 3
    STILL = 4
    NO_STILL = 5
    LOOK = 6


class Roi(IntEnum):
    """How a sender can give some of the picture more bits."""

    none = 0
    x264 = 1
    vp8 = 2
    canvas = 3  # a browser: crop and held background


@dataclass(frozen=True, slots=True)
class Imp:
    """The importance map. capture_ms: of the picture it was made from, on the sender's clock, mod 2^32."""

    grid: NDArray[np.uint8]  # (GRID_H, GRID_W)
    confidence: float
    seq: int = 0
    capture_ms: int = 0
    ttl_ms: int = 1500
    dqp_max: int = 24
    source: Source = Source.detector

    def pack(self) -> bytes:
        return (
            _IMP.pack(
                VERSION, Kind.IMP, self.seq & 0xFFFF, self.capture_ms & _U32, min(self.ttl_ms, MAX_TTL_MS),
                round(max(0.0, min(1.0, self.confidence)) * 255), self.dqp_max, GRID_W, GRID_H, self.source,
            )
            + self.grid.astype(np.uint8).tobytes()
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rate:
    """What the far end has use for. kbps 0: as much as the path carries. kf_gap_ms 0: keyframes only when asked for.
    context_kbps, context_fps: of the context track, beside those of the crop; only for a sender that is cropping."""

    seq: int = 0
    kbps: int = 0
    fps: float = 30.0
    kf_gap_ms: int = 0
    context_kbps: int = 0
    context_fps: float = 0.0

    def pack(self) -> bytes:
        data = _RATE.pack(
            VERSION, Kind.RATE, self.seq & 0xFFFF, min(self.kbps, _U32), _hundredths(self.fps),
            min(self.kf_gap_ms, 0xFFFF),
        )  # fmt: skip
        if self.context_fps:
            data += _CONTEXT.pack(min(self.context_kbps, _U32), _hundredths(self.context_fps))
        return data


@dataclass(frozen=True, slots=True)
class Caps:
    """What the sender can do and what it does. now_ms: its clock. imp_seq, dqp: the map in force, 0 for uniform.
    path_kbps: what it believes its path carries, 0 when it cannot tell. sent_kbps: of video, in the last second. crop: can
    send a crop and a context track in place of the whole picture; cropping: does so now."""

    roi: Roi = Roi.none
    seq: int = 0
    now_ms: int = 0
    crop: bool = False
    fetch: bool = False
    ring_ms: int = 0
    width: int = 0
    height: int = 0
    imp_seq: int = 0
    dqp: int = 0
    path_kbps: int = 0
    sent_kbps: int = 0
    cropping: bool = False

    def pack(self) -> bytes:
        flags = self.crop | self.fetch << 1 | self.cropping << 2
        return _CAPS.pack(
            VERSION, Kind.CAPS, self.seq & 0xFFFF, self.now_ms & _U32, self.roi, flags,
            min(self.ring_ms, 0xFFFF), min(self.width, 0xFFFF), min(self.height, 0xFFFF), self.imp_seq & 0xFFFF,
            max(0, min(255, self.dqp)), min(self.path_kbps, _U32), min(self.sent_kbps, _U32),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Still:
    """The answer to a FETCH: an encoded picture (WebP or JPEG) of `box`, width × height pixels."""

    id: int
    capture_ms: int
    box: Box
    width: int
    height: int
    data: bytes

    def pack(self) -> bytes:
        return (
            _STILL.pack(
                VERSION,
                Kind.STILL,
                0,
                self.id & _U32,
                self.capture_ms & _U32,
                *_shares(self.box),
                self.width,
                self.height,
            )
            + self.data
        )


@dataclass(frozen=True, slots=True)
class NoStill:
    id: int
    why: str

    def pack(self) -> bytes:
        return _NO_STILL.pack(VERSION, Kind.NO_STILL, 0, self.id & _U32) + self.why.encode()[:MAX_REASON]


@dataclass(frozen=True, slots=True)
class Look:
    """The user points: a box, for so long. box None: no longer."""

    box: Box | None
    ttl_ms: int = 15_000

    def pack(self) -> bytes:
        box = self.box if self.box is not None else (0.0, 0.0, 0.0, 0.0)
        return _LOOK.pack(VERSION, Kind.LOOK, 0, min(self.ttl_ms, MAX_TTL_MS), *_shares(box))


Message: TypeAlias = Imp | Rate | Caps | Still | NoStill | Look


def parse(data: bytes) -> Message:
    """Raises: ValueError in words."""
    if len(data) < _HEAD.size:
        raise ValueError(f"a message of {len(data)} bytes; version and type are missing")
    version, kind = _HEAD.unpack_from(data)
    if version != VERSION:
        raise ValueError(f"version {version}; {VERSION} is taken")
    reader = _READERS.get(kind)
    if reader is None:
        raise ValueError(f"unknown type {kind}; known: {', '.join(f'{k.value} {k.name}' for k in Kind)}")
    return reader(data)


def _imp(data: bytes) -> Imp:
    if len(data) != _IMP.size + CELLS:
        raise ValueError(f"IMP of {len(data)} bytes; it has {_IMP.size + CELLS}")
    _, _, seq, capture_ms, ttl_ms, confidence, dqp_max, columns, rows, source = _IMP.unpack_from(data)
    if (columns, rows) != (GRID_W, GRID_H):
        raise ValueError(f"IMP with a grid of {columns}x{rows}; {GRID_W}x{GRID_H} is taken")
    if ttl_ms > MAX_TTL_MS:
        raise ValueError(f"IMP with ttl_ms {ttl_ms}; at most {MAX_TTL_MS} are taken")
    if dqp_max > 51:
        raise ValueError(f"IMP with dqp_max {dqp_max}; at most 51 are taken")
    grid = np.frombuffer(data, np.uint8, CELLS, _IMP.size).reshape(GRID_H, GRID_W)
    return Imp(grid, confidence / 255, seq, capture_ms, ttl_ms, dqp_max, _member(Source, source, "IMP"))


def _rate(data: bytes) -> Rate:
    if len(data) not in (_RATE.size, _RATE.size + _CONTEXT.size):
        raise ValueError(f"RATE of {len(data)} bytes; it has {_RATE.size} or {_RATE.size + _CONTEXT.size}")
    _, _, seq, kbps, fps, kf_gap_ms = _RATE.unpack_from(data)
    context_kbps, context_fps = 0, 0
    if len(data) > _RATE.size:
        context_kbps, context_fps = _CONTEXT.unpack_from(data, _RATE.size)
        _check_fps(context_fps)
    return Rate(seq, kbps, _check_fps(fps), kf_gap_ms, context_kbps, context_fps / 100)


def _caps(data: bytes) -> Caps:
    _exact(data, _CAPS, "CAPS")
    _, _, seq, now_ms, roi, flags, *rest = _CAPS.unpack(data)
    return Caps(
        _member(Roi, roi, "CAPS"),
        seq,
        now_ms,
        bool(flags & 1),
        bool(flags & 2),
        *rest,
        cropping=bool(flags & 4),
    )


def _still(data: bytes) -> Still:
    if not _STILL.size < len(data) <= _STILL.size + MAX_STILL:
        raise ValueError(f"STILL of {len(data)} bytes; it has {_STILL.size} and up to {MAX_STILL} of picture")
    _, _, _, id_, capture_ms, x, y, w, h, width, height = _STILL.unpack_from(data)
    box = clip_box((x / 65535, y / 65535, w / 65535, h / 65535))
    if box is None:
        raise ValueError("STILL of an empty box")
    if not 0 < width <= 8192 or not 0 < height <= 8192:
        raise ValueError(f"STILL of {width}x{height} pixels; up to 8192x8192 are taken")
    return Still(id_, capture_ms, box, width, height, data[_STILL.size :])


def _no_still(data: bytes) -> NoStill:
    if not _NO_STILL.size <= len(data) <= _NO_STILL.size + MAX_REASON:
        raise ValueError(f"NO_STILL of {len(data)} bytes; up to {_NO_STILL.size + MAX_REASON} are taken")
    return NoStill(_NO_STILL.unpack_from(data)[3], data[_NO_STILL.size :].decode(errors="replace"))


def _look(data: bytes) -> Look:
    _exact(data, _LOOK, "LOOK")
    _, _, _, ttl_ms, x, y, w, h = _LOOK.unpack(data)
    if ttl_ms > MAX_TTL_MS:
        raise ValueError(f"LOOK with ttl_ms {ttl_ms}; at most {MAX_TTL_MS} are taken")
    if not w and not h:
        return Look(None, ttl_ms)
    box = clip_box((x / 65535, y / 65535, w / 65535, h / 65535))
    if box is None:
        raise ValueError("LOOK at an empty box")
    return Look(box, ttl_ms)


_READERS = {
    Kind.IMP: _imp,
    Kind.RATE: _rate,
    Kind.CAPS: _caps,
    Kind.STILL: _still,
    Kind.NO_STILL: _no_still,
    Kind.LOOK: _look,
}


def _hundredths(fps: float) -> int:
    return max(1, min(0xFFFF, round(fps * 100)))


def _check_fps(hundredths: int) -> float:
    if not 10 <= hundredths <= 12_000:
        raise ValueError(f"RATE with fps {hundredths / 100}; 0.1 to 120 are taken")
    return hundredths / 100


def _exact(data: bytes, form: struct.Struct, name: str) -> None:
    if len(data) != form.size:
        raise ValueError(f"{name} of {len(data)} bytes; it has {form.size}")


_E = TypeVar("_E", bound=IntEnum)


def _member(kinds: type[_E], value: int, name: str) -> _E:
    try:
        return kinds(value)
    except ValueError:
        raise ValueError(
            f"{name} with {kinds.__name__.lower()} {value}; known: {[k.value for k in kinds]}"
        ) from None


def _shares(box: Sequence[float]) -> tuple[int, ...]:
    return tuple(round(max(0.0, min(1.0, v)) * 65535) for v in box)


# ---------------------------------------------------------------- FETCH, JSON on the reliable channel


@dataclass(frozen=True, slots=True)
class Fetch:
    """capture_ms: on the sender's clock; None: the newest. deadline_ms: from when the message comes."""

    id: int
    box: Box
    capture_ms: int | None = None
    max_bytes: int = 12_000
    deadline_ms: int = 1500

    def fields(self) -> dict[str, object]:
        return {
            "id": self.id,
            "box": [round(v, 5) for v in self.box],
            "capture_ms": "latest" if self.capture_ms is None else self.capture_ms,
            "max_bytes": self.max_bytes,
            "deadline_ms": self.deadline_ms,
        }


def parse_fetch(message: object) -> Fetch:
    """Of the decoded JSON object. Raises: ValueError naming the field."""
    if not isinstance(message, dict):
        raise ValueError("fetch: no object")
    given: dict[str, object] = message
    box = given.get("box")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(v) for v in box):
        raise ValueError("fetch: box must be [x, y, width, height] in shares of the picture")
    clipped = clip_box([float(v) for v in box])
    if clipped is None:
        raise ValueError(f"fetch: box {box} has nothing of the picture")
    capture = given.get("capture_ms", "latest")
    return Fetch(
        _bounded(given, "id", 0, _U32),
        clipped,
        None if capture == "latest" else _bounded(given, "capture_ms", 0, _U32),
        _bounded(given, "max_bytes", 500, MAX_STILL, 12_000),
        _bounded(given, "deadline_ms", 50, 10_000, 1500),
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _bounded(given: dict[str, object], name: str, least: int, most: int, default: int | None = None) -> int:
    value = given.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"fetch: {name} is {value!r}; an integer from {least} to {most} is taken")
    return value
