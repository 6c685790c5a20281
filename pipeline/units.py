"""Quantities as people write them in YAML: `40ms`, `3s`, `48k`, `640x480@30`, `16k/mono/20ms`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, PlainSerializer

from .clock import MS, SECOND

_UNIT_NS = {
    "ns": 1,
    "us": 1_000,
    "ms": MS,
    "s": SECOND,
    "m": 60 * SECOND,
    "min": 60 * SECOND,
    "h": 3600 * SECOND,
}
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ns|us|ms|s|min|m|h)\s*")
_RATE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(k|M)?\s*")
_SIZE = re.compile(r"\s*(\d+)x(\d+)(?:@(\d+(?:\.\d+)?))?\s*")
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d{1,2})?")
_BYTES = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(B|kB|MB|GB|KiB|MiB|GiB)\s*")
_BYTE_UNIT = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}


def parse_duration(value: Any) -> int:
    """`"40ms"` → ns. A bare number is refused: nobody can guess its unit."""
    if isinstance(value, str) and (m := _DURATION.fullmatch(value)):
        return round(float(m[1]) * _UNIT_NS[m[2]])
    raise ValueError(f"{value!r:.80} is not a duration; write a number and a unit, as 40ms, 1.5s or 2min")


def parse_rate(value: Any) -> int:
    """`48k`, `16000` → Hz or b/s."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    if isinstance(value, str) and (m := _RATE.fullmatch(value)):
        return round(float(m[1]) * {None: 1, "k": 1_000, "M": 1_000_000}[m[2]])
    raise ValueError(f"{value!r:.80} is not a rate; write 48k, 16000 or 1.5M")


def parse_bytes(value: Any) -> int:
    """`64MiB` → bytes."""
    if isinstance(value, str) and (m := _BYTES.fullmatch(value)):
        return round(float(m[1]) * _BYTE_UNIT[m[2]])
    raise ValueError(f"{value!r:.80} is not a size; write a number and a unit, as 64MiB or 500kB")


def parse_device(value: Any) -> str:
    """Where a pool, or one stage, computes."""
    if isinstance(value, str) and _DEVICE.fullmatch(value):
        return value
    raise ValueError(
        f"{value!r:.80} is not a device; write auto, cpu, cuda, cuda:1 (the second GPU) or mps (a Mac's)"
    )


def written_as(pattern: str, accepted: str, tell: bool = True) -> AfterValidator:
    """For a field of text in a certain form, told in words. tell: may the value be shown? (A secret may not.)"""
    form = re.compile(pattern)

    def check(value: str) -> str:
        if not form.fullmatch(value):
            raise ValueError(f"accepted: {accepted}{f' (got {value!r:.80})' if tell else ''}")
        return value

    return AfterValidator(check)


class Quantity(int):
    """A number whose unit is known: only code makes one, so a bare number of a file is never taken for it."""

    def __repr__(self) -> str:
        return str(self)


class Nanoseconds(Quantity):
    """For a `Duration` that code sets: `Options(stall=Nanoseconds(400 * MS))`."""

    def __str__(self) -> str:
        return written(self, {unit: ns for unit, ns in _UNIT_NS.items() if unit != "m"}, "0s")


class ByteCount(Quantity):
    """For `Bytes` that code sets."""

    def __str__(self) -> str:
        return written(self, _BYTE_UNIT, "0B")


def written(value: int, units: Mapping[str, int], zero: str) -> str:
    """In the unit that makes it a whole number, and the smallest: 90_000_000_000 ns → `90s`."""
    whole = [(value // size, unit) for unit, size in units.items() if value % size == 0]
    count, unit = min(whole, key=lambda w: abs(w[0]))
    return f"{count}{unit}" if value else zero


def _duration(value: Any) -> Nanoseconds:
    if isinstance(value, Nanoseconds):
        return value
    return Nanoseconds(0 if type(value) is int and value == 0 else parse_duration(value))


def _bytes(value: Any) -> ByteCount:
    if isinstance(value, ByteCount):
        return value
    return ByteCount(0 if type(value) is int and value == 0 else parse_bytes(value))


Duration = Annotated[
    int, BeforeValidator(_duration), PlainSerializer(lambda v: str(Nanoseconds(v)), return_type=str)
]
"""pydantic field: ns, written as `40ms`, and so again in a dump. Of bare numbers only 0 is taken."""

Bytes = Annotated[int, BeforeValidator(_bytes), PlainSerializer(lambda v: str(ByteCount(v)), return_type=str)]
"""pydantic field: bytes, written as `512MB`, and so again in a dump. Of bare numbers only 0 is taken."""


@dataclass(frozen=True, slots=True)
class VideoFormat:
    """`640x480@30`: pixels and frames per second; fps 0 means as captured."""

    width: int
    height: int
    fps: float = 0.0


@dataclass(frozen=True, slots=True)
class AudioFormat:
    """`48k/mono/20ms`: Hz, channels and frame length in ns."""

    rate_hz: int
    channels: int = 1
    frame: int = 20 * MS


def parse_video(value: Any) -> VideoFormat:
    if isinstance(value, VideoFormat):
        return value
    if isinstance(value, str) and (m := _SIZE.fullmatch(value)):
        width, height = int(m[1]), int(m[2])
        if 16 <= width <= 7680 and 16 <= height <= 4320:
            return VideoFormat(width, height, float(m[3] or 0))
        raise ValueError(f"{value!r:.80} is out of range; from 16x16 to 7680x4320 are taken")
    raise ValueError(f"{value!r:.80} is not a video format; write WIDTHxHEIGHT@FPS, as 640x480@30")


def parse_audio(value: Any) -> AudioFormat:
    if isinstance(value, AudioFormat):
        return value
    if isinstance(value, str):
        parts = value.split("/")
        channels = {"mono": 1, "stereo": 2}
        try:
            rate = parse_rate(parts[0])
            count = channels[parts[1]] if len(parts) > 1 else 1
            frame = parse_duration(parts[2]) if len(parts) > 2 else 20 * MS
            if len(parts) <= 3 and 8_000 <= rate <= 192_000 and 10 * MS <= frame <= 120 * MS:
                return AudioFormat(rate, count, frame)
        except (KeyError, ValueError):
            pass
    raise ValueError(f"{value!r:.80} is not an audio format; write RATE/mono|stereo/FRAME, as 48k/mono/20ms")


Device = Annotated[str, BeforeValidator(parse_device)]
Video = Annotated[VideoFormat, BeforeValidator(parse_video)]
Audio = Annotated[AudioFormat, BeforeValidator(parse_audio)]
