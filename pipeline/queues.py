"""What queues hold and do when full, unless a graph says otherwise; and how sizes are written."""

from __future__ import annotations

import re

from .clock import MS
from .edge import Bound
from .stage import Origin
from .units import parse_bytes, parse_duration

FULL = ("drop_oldest", "block", "latest")

QUEUES: dict[Origin, Bound] = {
    "live": Bound("drop_oldest", span=40 * MS),
    "generated": Bound("block", span=200 * MS),
    "token": Bound("block", count=256),
    "state": Bound("latest"),
}


def parse_bound(size: object) -> Bound:
    """`40ms`, `8f`, `256` or `4MiB` as a dropping queue of that size. Raises: ValueError."""
    if count := re.fullmatch(r"(\d+)f?", str(size)):
        if not 1 <= int(count[1]) <= 4096:
            raise ValueError(f"a queue holds 1 to 4096 frames, not {size!r}")
        return Bound("drop_oldest", count=int(count[1]))
    try:
        return Bound("drop_oldest", span=parse_duration(size))
    except ValueError:
        pass
    try:
        return Bound("drop_oldest", nbytes=parse_bytes(size))
    except ValueError:
        raise ValueError(f"{size!r} is no queue size; write 40ms, 8f (frames), 256 or 4MiB") from None
