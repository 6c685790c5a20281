"""Where a node's frames go: fan-out from its output ports to the edges that read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from .edge import Edge
from .frame import Frame
from .stage import StageError

Put: TypeAlias = Callable[[Frame], None]


class NodeOutputs:
    """The node's `Outputs`: fans each frame out to the edges of a port."""

    __slots__ = ("_edges", "_puts", "blocking", "epoch", "node", "source")

    def __init__(self, node: str, ports: Mapping[str, list[Edge]]) -> None:
        self.epoch = 0
        self.source = ""
        self.node = node
        self._edges = ports
        self._puts: dict[str, list[Put]] = {
            port: [edge.put for edge in edges] for port, edges in ports.items()
        }
        self.blocking = [e for edges in ports.values() for e in edges if e.bound.full == "block"]

    def hear(self, port: str, on_frame: Put) -> None:
        """Call `on_frame` too for each frame put on `port`."""
        self._puts[port].append(on_frame)

    def fuse(self, edge: Edge, put: Put) -> None:
        """Put on `edge` by another function from now on."""
        for port, edges in self._edges.items():
            if edge in edges:
                self._puts[port][edges.index(edge)] = put

    def post(self, port: str, frame: Frame) -> None:
        try:
            puts = self._puts[port]
        except KeyError:
            names = ", ".join(self._edges) or "none"
            raise StageError(f"{self.node!r} has no output port {port!r}; it has: {names}") from None
        for put in puts:
            put(frame)

    async def send(self, port: str, frame: Frame) -> None:
        self.post(port, frame)
        for edge in self._edges[port]:
            if edge.queue and edge.bound.full == "block" and edge.is_full:
                await edge.room()

    def puts(self) -> int:
        """Frames put on the busiest port, for a source's rate."""
        return max((e.puts for edges in self._edges.values() for e in edges), default=0)

    def close(self) -> None:
        """The stage has ended: so do its edges."""
        for edges in self._edges.values():
            for edge in edges:
                edge.close()
