"""Which of a graph's events and texts leave the daemon."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

LIFE = ("session.*", "*.restart", "*.failed", "*.replaced", "*.not_replaced")


@dataclass(frozen=True, slots=True)
class EventsPlan:
    """mqtt: the broker's URL, or env: or file: where it is; "" for none. emit: patterns of "node.event";
    texts: "node.port" whose words are sent, each named in full: no pattern ever sends a transcript."""

    mqtt: str = ""
    emit: tuple[str, ...] = LIFE
    texts: tuple[str, ...] = ()

    @property
    def nodes(self) -> frozenset[str]:
        """Those that it names in full."""
        return frozenset(e.partition(".")[0] for e in (*self.emit, *self.texts))

    def wants(self, node: str, name: str) -> bool:
        return any(fnmatchcase(f"{node}.{name}", pattern) for pattern in self.emit)
