"""Hot reload: read the graph files again, change what can be changed, say what could not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..pipeline.compiler import load
from ..pipeline.errors import GraphError
from ..pipeline.graph import Plan
from ..pipeline.reload import apply, diff
from .headless import HeadlessSession
from .live_session import LiveSession

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Reloaded:
    """What one reload did."""

    changed: list[str] = field(default_factory=list[str])  # graphs
    faults: list[str] = field(default_factory=list[str])  # files that stay as they were, with places
    sessions: int = 0  # running ones that took something over
    later: list[str] = field(default_factory=list[str])  # what only new sessions get

    def as_json(self) -> dict[str, Any]:
        return {
            "changed": self.changed,
            "faults": self.faults,
            "sessions": self.sessions,
            "later": self.later,
        }

    def words(self) -> str:
        """For `systemctl status`; empty when all went well."""
        return f"reload refused: {self.faults[0].splitlines()[0]}" if self.faults else ""


class Reloader:
    """graphs: the daemon's own table, changed in place: new sessions read it. running: sessions now."""

    def __init__(
        self,
        graphs: MutableMapping[str, Plan],
        running: Callable[[], Sequence[LiveSession | HeadlessSession]],
    ) -> None:
        self._graphs = graphs
        self._running = running
        self._one = asyncio.Lock()

    async def reload(self) -> Reloaded:
        """Compile every file first, off the loop; a file with faults changes nothing."""
        result = Reloaded()
        async with self._one:
            for name, old in list(self._graphs.items()):
                try:
                    new = await asyncio.to_thread(load, Path(old.path))
                except (GraphError, OSError) as e:
                    log.error("%s keeps its old version: %s", name, e)
                    result.faults.append(str(e))
                    continue
                if new.name != name:
                    result.faults.append(f"{old.path}: the graph is now named {new.name!r}; restart for that")
                    log.error("%s", result.faults[-1])
                    continue
                changes = diff(old, new)
                if changes.is_empty:
                    continue
                self._graphs[name] = new
                result.changed.append(name)
                for live in self._running():
                    if live.graph == name:
                        result.sessions += 1
                        for words in apply(live.session, new, changes):
                            if words not in result.later:
                                result.later.append(words)
        log.info("reloaded: changed %s, %d sessions", result.changed or "nothing", result.sessions)
        return result
