"""How benchmarks print: JSON, one object a line, the summary last."""

from __future__ import annotations

import json
import resource
import sys


def line(**fields: object) -> None:
    """Print one object at once, so that a long run shows how far it is."""
    print(json.dumps(fields), flush=True)


def percentile(values: list[float], q: float) -> float:
    """Nearest-rank percentile, `q` in [0, 1]. Raises: ValueError when there are no values."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def rss_mb() -> float:
    """Resident memory now, MB."""
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * resource.getpagesize() / 1e6


def note(text: str) -> None:
    """Progress for people, apart from the figures."""
    print(text, file=sys.stderr, flush=True)
