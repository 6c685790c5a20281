"""Where a node's frames go: fan-out from its output ports to the edges that read them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from .clock import MonotonicClock
from .edge import Edge
from .frame import Frame
from .recorder import Kind, Recorder
from .stage import StageError

POST = int(Kind.POST)


class Post(Protocol):
    """What puts a frame on the port of that name."""

    def __call__(self, port: str, frame: Frame, /) -> None: ...


class NodeOutputs:
    """The node's `Outputs`: fans each frame out to the edges of a port.

    `post` is made anew whenever the readers change: a node with one output port and one reader, which most
    are, pays for no look-up and no loop.
    """

    __slots__ = (
        "_edges",
        "_fused_alone",
        "_nothing",
        "_posts",
        "_tape",
        "blocking",
        "epoch",
        "node",
        "note",
        "post",
        "source",
    )

    def __init__(
        self,
        node: str,
        ports: Mapping[str, list[Edge]],
        tape: Recorder | None = None,
        now: Callable[[], int] = MonotonicClock.now,
    ) -> None:
        self.epoch = 0
        self.source = ""
        self.node = node
        self._tape = tape
        self._edges = ports
        self._fused_alone = False  # the only reader is called on the spot, and notes each frame itself
        self.note = self._noting(now)
        self._posts: dict[str, list[Post]] = {port: [e.post for e in edges] for port, edges in ports.items()}
        self.blocking = [e for edges in ports.values() for e in edges if not e.drops]
        self._nothing: Awaitable[None] | None = None
        for edges in ports.values():
            for edge in edges:
                edge.refuse = self.refuse
        self.post: Post = self._compiled()

    def hear(self, port: str, on_frame: Callable[[Frame], None]) -> None:
        """Call `on_frame` too for each frame put on `port`."""

        def post(_: str, frame: Frame) -> None:
            on_frame(frame)

        self._posts[port].append(post)
        self.post = self._compiled()

    def fuse(self, edge: Edge, post: Post) -> None:
        """Put on `edge` by another function from now on."""
        posts = self._posts[edge.src_port]
        posts[self._edges[edge.src_port].index(edge)] = post
        self._fused_alone = len(self._edges) == 1 and len(posts) == 1
        self.post = self._compiled()

    def refuse(self, port: str) -> StageError:
        """The error of a stage that puts on a port which it does not have."""
        names = ", ".join(self._edges) or "none"
        return StageError(f"{self.node!r} has no output port {port!r}; it has: {names}")

    async def _wait(self, port: str) -> None:
        for edge in self._edges[port]:
            if edge.full:
                await edge.room()

    def send(self, port: str, frame: Frame) -> Awaitable[None]:
        """Put now; what it returns waits for room."""
        self.post(port, frame)
        for edge in self.blocking:
            if edge.full:
                return self._wait(port)
        nothing = self._nothing
        if nothing is None:  # awaited by each frame: a finished future costs a third of a coroutine
            nothing = self._nothing = asyncio.get_running_loop().create_future()
            nothing.set_result(None)
        return nothing

    def puts(self) -> int:
        """Frames put on the busiest port, for a source's rate."""
        return max((e.puts for edges in self._edges.values() for e in edges), default=0)

    def total_puts(self) -> int:
        """Frames put, counted once for each reader: whether it changes tells of progress."""
        return sum(e.puts for edges in self._edges.values() for e in edges)

    def close(self) -> None:
        """The stage has ended: so do its edges."""
        for edges in self._edges.values():
            for edge in edges:
                edge.close()

    # ------------------------------------------------------------ inside

    def _noting(self, now: Callable[[], int]) -> Post | None:
        """Notes a frame in the flight recorder; None when there is none."""
        if self._tape is None:
            return None
        note, refuse = self._tape.note, self.refuse
        ids = {port: self._tape.name(f"{self.node}.{port}") for port in self._edges}

        def posts(port: str, frame: Frame) -> None:
            where = ids.get(port)
            if where is None:
                raise refuse(port)
            note((POST, where, now(), frame.pts, frame.deadline, frame.epoch))

        return posts

    def _compiled(self) -> Post:
        post, posts = self._fanned(), self.note
        if posts is None or self._fused_alone:
            return post

        def noted(port: str, frame: Frame) -> None:
            posts(port, frame)
            post(port, frame)

        return noted

    def _fanned(self) -> Post:
        if len(self._edges) == 1:
            ((port, posts),) = self._posts.items()
            if len(posts) == 1 and self._edges[port]:
                return posts[0]  # it checks the port itself
        by_port, refuse = {port: tuple(posts) for port, posts in self._posts.items()}, self.refuse

        def post(port: str, frame: Frame) -> None:
            try:
                posts = by_port[port]
            except KeyError:
                raise refuse(port) from None
            for put in posts:
                put(port, frame)

        return post
