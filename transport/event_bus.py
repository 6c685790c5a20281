"""What happens in the daemon, for those who watch: SSE clients, MQTT. A slow reader loses its oldest events.

Nothing here is on the data path: a session calls `publish`, which never waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..pipeline.session import SessionEvent

BACKLOG = 256  # events that wait for one reader


@dataclass(frozen=True, slots=True)
class DaemonEvent:
    """`at` is Unix time in ns. `session` is empty for what concerns the whole daemon."""

    at: int
    session: str
    graph: str
    node: str
    name: str
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def as_json(self) -> dict[str, Any]:
        return {
            "at_ms": self.at // 1_000_000,
            "session": self.session,
            "graph": self.graph,
            "from": self.node,
            "name": self.name,
            "fields": dict(self.fields),
        }


class Subscription:
    """One reader's queue. `lost` counts what it was too slow for."""

    def __init__(self, backlog: int = BACKLOG) -> None:
        self.lost = 0
        self.closed = False
        self._events: deque[DaemonEvent] = deque(maxlen=backlog)
        self._news = asyncio.Event()

    def put(self, event: DaemonEvent) -> None:
        self.lost += len(self._events) == self._events.maxlen
        self._events.append(event)
        self._news.set()

    def close(self) -> None:
        self.closed = True
        self._news.set()

    async def get(self) -> DaemonEvent | None:
        """The next event; None when the daemon stops."""
        while not self._events:
            if self.closed:
                return None
            self._news.clear()
            await self._news.wait()
        return self._events.popleft()


class EventBus:
    """Hands each event to every subscriber. wall: Unix time in ns."""

    def __init__(self, wall: Callable[[], int], limit: int = 32) -> None:
        self.limit = limit
        self._wall = wall
        self._readers: set[Subscription] = set()

    def publish(
        self,
        name: str,
        fields: Mapping[str, Any] | None = None,
        *,
        session: str = "",
        graph: str = "",
        node: str,
    ) -> None:
        event = DaemonEvent(self._wall(), session, graph, node, name, fields or {})
        for reader in self._readers:
            reader.put(event)

    def forward(self, graph: str, session: str) -> Callable[[SessionEvent], None]:
        """A session's listener that publishes its events."""

        def on_event(event: SessionEvent) -> None:
            self.publish(event.name, event.fields, session=session, graph=graph, node=event.node)

        return on_event

    @property
    def is_full(self) -> bool:
        return len(self._readers) >= self.limit

    def subscribe(self, backlog: int = BACKLOG) -> Subscription:
        reader = Subscription(backlog)
        self._readers.add(reader)
        return reader

    def unsubscribe(self, reader: Subscription) -> None:
        self._readers.discard(reader)

    def close(self) -> None:
        """Let every reader end after what it still holds."""
        for reader in self._readers:
            reader.close()
