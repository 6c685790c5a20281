"""Hostile input at every door of the transport for as long as asked: RTP, RTCP, STUN, SDP, data channel, feedback, redundant audio.

    make bench AREA=transport_fuzz ARGS="--minutes 10"

Runs the property tests of tests/ in turn, each time with new examples; the first that fails ends it with its example. Prints JSON, the
summary last: examples, failures, and what has grown since the first round: Python objects, and memory after free pages were given
back to the system (before that it follows the allocator's and hypothesis' own ups and downs, some MB).
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

EXAMPLES = 150  # of each property a round
MODULES = (
    "test_transport_fuzz",
    "test_datachannel",
    "test_rt_messages",
    "test_red",
    "test_twcc",
    "test_bandwidth",
)


def properties() -> dict[str, Callable[[], Any]]:
    """The property tests that take nothing but examples."""
    from hypothesis import settings

    found: dict[str, Callable[[], Any]] = {}
    for module in MODULES:
        try:
            loaded = importlib.import_module(module)
        except ModuleNotFoundError:
            continue
        for name, test in vars(loaded).items():
            if name.startswith("test_") and hasattr(test, "hypothesis"):
                test._hypothesis_internal_use_settings = settings(
                    max_examples=EXAMPLES, deadline=None, database=None
                )
                found[f"{module}.{name}"] = test
    return found


def held() -> tuple[float, int]:
    """Memory in use, MB, and live Python objects, after what is free was given back."""
    from penstock.transport.memory import give_back
    from report import rss_mb

    gc.collect()
    give_back()
    return rss_mb(), len(gc.get_objects())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=0.5)
    chosen = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    os.environ["PENSTOCK_FUZZ_EXAMPLES"] = str(EXAMPLES)
    from report import line, note

    doors = properties()
    ran: Counter[str] = Counter()
    failures = 0
    begin = time.monotonic()
    before: tuple[float, int] | None = None
    after = (0.0, 0)
    rounds = 0
    while time.monotonic() - begin < 60 * chosen.minutes and not failures:
        for name, test in doors.items():
            if time.monotonic() - begin >= 60 * chosen.minutes and before is not None:
                break
            try:
                test()
            except Exception as e:  # noqa: BLE001 - whatever it is, it is what this looks for
                failures += 1
                note(f"{name}: {e!r}")
                break
            ran[name] += EXAMPLES
        after = held()
        before = before or after
        rounds += 1
    for name, count in ran.items():
        line(measured="fuzz", door=name, examples=count)
    line(
        area="transport_fuzz",
        minutes=round((time.monotonic() - begin) / 60, 2),
        examples=sum(ran.values()),
        failures=failures,
        growth_mb=round(after[0] - before[0], 1) if before and rounds > 1 else None,
        growth_objects=after[1] - before[1] if before and rounds > 1 else None,
    )
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
