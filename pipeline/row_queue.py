"""Which rows run next: the whole scheduling policy of a pool, without clocks, threads or futures.

    every lane offers its oldest row          in order per session, node and lane
    what cannot be in time is dropped         before it costs anything
    earliest deadline leads                   flows over their share stand behind, when time is short
    rows like the leader join                 any session, any step, as many as throughput and deadlines allow

Continuous batching: nobody waits for a batch to fill, and a row of another step is as good as any.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol

from .clock import NEVER, SECOND
from .cost_model import MAX_CURVES, CostModel
from .rows import Row
from .shares import Shares

PROBE = SECOND  # a model that was not measured for so long may run one row that looks hopeless
MAX_QUEUED = 256  # rows of one session
SIZE_RATE = 0.2  # weight of the last batch in the usual size
QUARANTINE = 32  # rows that a session runs alone after one of its rows broke a shared forward


class Waiter(Protocol):
    """The future of who awaits a row."""

    def done(self) -> bool: ...


@dataclass(slots=True, eq=False)
class Job:
    """A row in the queue, and whom its end is told: nobody any more when `waiter.done()`."""

    row: Row
    model: str
    key: Hashable
    waiter: Waiter
    seq: int = 0
    started: bool = False  # its frame has had a forward already
    alone: bool = False  # run again by itself, after a batch with it failed

    @property
    def lane(self) -> tuple[str, str, int]:
        return (self.row.session, self.row.node, self.row.lane)

    @property
    def flow(self) -> tuple[str, str]:
        return (self.row.session, self.row.node)


@dataclass(slots=True)
class Taken:
    """What one turn brings: rows to run together (none: nothing to do), and rows that ended unrun."""

    run: list[Job]
    missed: list[Job]
    unwanted: list[Job]


class RowQueue:
    """Not thread safe: the pool holds its lock around each call."""

    def __init__(self, costs: CostModel, shares: Shares, max_rows: int) -> None:
        self.costs = costs
        self.shares = shares
        self.max_rows = max_rows
        self.waiting = 0
        self._lanes: dict[tuple[str, str, int], deque[Job]] = {}
        self._running: set[tuple[str, str, int]] = set()
        self._queued: dict[str, int] = {}
        self._suspects: dict[str, int] = {}
        self._ran: dict[tuple[str, Hashable], int] = {}  # when its last forward began
        self._sizes: dict[tuple[str, Hashable], float] = {}  # rows in its recent forwards
        self._seq = 0

    # ------------------------------------------------------------ in

    def push(self, job: Job) -> bool:
        """Queue a new row. False when its session has too many already."""
        if self._queued.get(job.row.session, 0) >= MAX_QUEUED:
            return False
        self._seq += 1
        job.seq = self._seq
        self._enter(job).append(job)
        return True

    def push_again(self, job: Job, *, front: bool) -> None:
        """Queue a row that has run: in `front` of its lane to be run again, else for its next forward."""
        lane = self._enter(job)
        if front:
            lane.appendleft(job)
        else:
            lane.append(job)

    def done(self, job: Job) -> None:
        """A row that was taken has ended, or goes back: its lane may go on."""
        self._running.discard(job.lane)

    def suspect(self, session: str) -> None:
        """A row of this session broke a forward: keep its next ones apart from the others'."""
        self._suspects[session] = QUARANTINE

    # ------------------------------------------------------------ out

    def holds(self, wanted: Callable[[Job], bool]) -> bool:
        return any(wanted(job) for lane in self._lanes.values() for job in lane)

    def remove(self, drop: Callable[[Job], bool]) -> list[Job]:
        """Take out all queued rows that `drop` names, in order of arrival."""
        out: list[Job] = []
        for key, lane in list(self._lanes.items()):
            gone = [job for job in lane if drop(job)]
            if gone:
                kept = deque(job for job in lane if not drop(job))
                self._lanes[key] = kept
                for job in gone:
                    self._left(job)
                if not kept:
                    del self._lanes[key]
                out += gone
        return sorted(out, key=lambda job: job.seq)

    def forget(self, session: str) -> None:
        """The session is gone: so is what we know of it."""
        self.shares.forget(session)
        self._suspects.pop(session, None)

    def next_deadline(self) -> int:
        return min((job.row.deadline for lane in self._lanes.values() for job in lane), default=NEVER)

    def take(self, now: int) -> Taken:
        """What to run now."""
        taken = Taken([], [], [])
        heads = self._heads(now, taken)
        if not heads:
            return taken
        over = self.shares.over({job.flow for job in heads}, now)
        heads.sort(key=lambda job: (job.flow in over, self._urgency(job), job.seq))
        leader = heads[0]
        group = [leader] if self._apart(leader) else self._company(leader, heads)
        taken.run = group[: self.costs.best(leader.model, leader.key, self._rooms(group, heads, now))]
        for job in taken.run:
            self._pop(job)
            self._running.add(job.lane)
        self.ran(leader.model, leader.key, len(taken.run), now)
        self._count_quarantine(taken.run)
        return taken

    def ran(self, model: str, key: Hashable, rows: int, now: int) -> None:
        """A forward of these began."""
        if len(self._ran) >= MAX_CURVES:
            self._ran.clear()
            self._sizes.clear()
        self._ran[model, key] = now
        before = self._sizes.get((model, key), 1.0)
        self._sizes[model, key] = before + SIZE_RATE * (rows - before)

    def hopeless(self, job: Job, now: int) -> bool:
        """Could it not be in time even if it ran now, alone?"""
        if job.row.deadline < now:
            return True
        # drop at the entrance: a frame given up half-way has cost the device for nothing
        rows = 1 if job.started or not job.row.further else self._usual(job)
        if now + self._safe(job, rows) * (1 + job.row.further) <= job.row.deadline:
            return False
        # costs may have been measured in a bad moment: without a try now and then nothing ever runs again
        return now - self._ran.get((job.model, job.key), now - PROBE) < PROBE

    # ------------------------------------------------------------ inside

    def _heads(self, now: int, taken: Taken) -> list[Job]:
        heads: list[Job] = []
        for key in list(self._lanes):
            lane = self._lanes[key]
            while lane:
                job = lane[0]
                if job.waiter.done():
                    taken.unwanted.append(job)
                elif self.hopeless(job, now):
                    taken.missed.append(job)
                else:
                    break
                lane.popleft()
                self._left(job)
            if not lane:
                del self._lanes[key]
            elif key not in self._running:
                heads.append(lane[0])
        return heads

    def _urgency(self, job: Job) -> int:
        """The earliest deadline of the lane: a row without one must not hold up an urgent row behind it."""
        return min(other.row.deadline for other in self._lanes[job.lane])

    def _apart(self, job: Job) -> bool:
        return job.alone or job.row.session in self._suspects

    def _company(self, leader: Job, heads: list[Job]) -> list[Job]:
        same = (leader.model, leader.key)
        return [job for job in heads if (job.model, job.key) == same and not self._apart(job)]

    def _rooms(self, group: list[Job], heads: list[Job], now: int) -> list[float]:
        """For each number of rows, from the front of `group`: how long their forward may take, ns."""
        leader = group[0]
        room = float(NEVER)
        others = [job for job in heads if (job.model, job.key) != (leader.model, leader.key)]
        if others:  # a large batch must not cost an urgent row of another model its deadline
            urgent = min(others, key=lambda job: (self._urgency(job), job.seq))
            after = self._room(urgent, now) - self._safe(urgent, 1)
            if after >= self._safe(leader, 1):
                room = after
        rooms: list[float] = []
        for job in group[: self.max_rows]:
            room = min(room, self._room(job, now))
            rooms.append(room)
        return rooms

    def _room(self, job: Job, now: int) -> float:
        """How long its next forward may take, if those that follow take as long."""
        return (job.row.deadline - now) / (1 + job.row.further)

    def _usual(self, job: Job) -> int:
        """The rows that a forward with this one will have, as they are of late."""
        return max(1, round(self._sizes.get((job.model, job.key), 1.0)))

    def _safe(self, job: Job, rows: int) -> float:
        return self.costs.safe(job.model, job.key, rows)

    def _enter(self, job: Job) -> deque[Job]:
        session = job.row.session
        self._queued[session] = self._queued.get(session, 0) + 1
        self.waiting += 1
        return self._lanes.setdefault(job.lane, deque())

    def _pop(self, job: Job) -> None:
        lane = self._lanes[job.lane]
        first = lane.popleft()
        assert first is job, "only the head of a lane runs"
        if not lane:
            del self._lanes[job.lane]
        self._left(job)

    def _left(self, job: Job) -> None:
        self.waiting -= 1
        session = job.row.session
        left = self._queued[session] - 1
        if left:
            self._queued[session] = left
        else:
            del self._queued[session]

    def _count_quarantine(self, jobs: list[Job]) -> None:
        for job in jobs:
            session = job.row.session
            if session in self._suspects:
                self._suspects[session] -= 1
                if not self._suspects[session]:
                    del self._suspects[session]
