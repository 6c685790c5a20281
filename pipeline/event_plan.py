"""Which of a graph's events and texts leave the daemon."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

INNER = frozenset({"importance", "fetch"})  # for the sender of pictures, several a second
LIFE = ("session.*", "*.restart", "*.failed", "*.replaced", "*.not_replaced")


@dataclass(frozen=True, slots=True)
class EventsPlan:
    """mqtt: the broker's URL, or env: or file: where it is; "" for none. emit: patterns of "node.event", which take
    `INNER` events only where their name is written out. texts: "node.port" whose words are sent, each named in full: no
    pattern ever sends a transcript."""

    mqtt: str = ""
    emit: tuple[str, ...] = LIFE
    texts: tuple[str, ...] = ()

    @property
    def nodes(self) -> frozenset[str]:
        """Those that it names in full."""
        return frozenset(e.partition(".")[0] for e in (*self.emit, *self.texts))

    def wants(self, node: str, name: str) -> bool:
        whole = f"{node}.{name}"
        wanted = (p for p in self.emit if name not in INNER or p.endswith(f".{name}"))
        return any(fnmatchcase(whole, pattern) for pattern in wanted)
