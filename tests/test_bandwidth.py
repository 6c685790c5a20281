"""The estimate against simulated links: capacity, queue, delay and loss on pure time."""

import random
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.transport.bandwidth import CEILING_BPS, FLOOR_BPS, START_BPS, Bandwidth, Received
from penstock.transport.feedback import Feedback, parse_feedback

PACKET = 1200


class Link:
    """A sender at exactly the target rate through one queue: 30 pictures/s, feedback each 50 ms."""

    def __init__(self, estimate: Bandwidth, capacity_bps: float, one_way_ms: float = 25, loss: float = 0.0):
        self.estimate = estimate
        self.capacity_bps = capacity_bps
        self.one_way_ms = one_way_ms
        self.loss = loss
        self.queue_ms = 300.0
        self.now = 0.0
        self.busy = 0.0  # when the link has sent all that is queued
        self.underway: deque[tuple[float, Received]] = deque()  # (when the feedback reaches us)
        self.worst_queue = 0.0
        self.random = random.Random(1)
        self.debt = 0.0

    def run(self, seconds: float, need_bps: float = 1e9) -> list[int]:
        """Targets, one each 50 ms."""
        targets = []
        end = self.now + seconds * 1000
        picture = self.now
        report = self.now + 50
        while self.now < end:
            self.now += 1
            if self.now >= picture:
                picture += 1000 / 30
                self.debt += min(self.estimate.target_bps, need_bps) / 30 / 8
                spread = 0.0
                while self.debt >= PACKET:
                    self.debt -= PACKET
                    self.send(self.now + spread)
                    spread += PACKET * 8000 / (2.5 * self.estimate.target_bps)
            if self.now >= report:
                report += 50
                ready = []
                while self.underway and self.underway[0][0] <= self.now:
                    ready.append(self.underway.popleft()[1])
                if ready:
                    self.estimate.on_feedback(ready, self.now, 2 * self.one_way_ms)
                targets.append(self.estimate.target_bps)
        return targets

    def send(self, at: float) -> None:
        queue = max(0.0, self.busy - at)
        self.worst_queue = max(self.worst_queue, queue)
        if queue > self.queue_ms or self.random.random() < self.loss:
            self.underway.append((at + 2 * self.one_way_ms + queue, Received(at, None, PACKET)))
            return
        self.busy = max(self.busy, at) + PACKET * 8000 / self.capacity_bps
        arrival = self.busy + self.one_way_ms + self.random.random() * 2
        self.underway.append((arrival + self.one_way_ms, Received(at, arrival, PACKET)))


def mean(values: list[int]) -> float:
    return sum(values) / len(values)


def test_capacity_steps_2m_350k_2m_are_followed():
    link = Link(Bandwidth(), 2_000_000)
    assert 1_200_000 < mean(link.run(15)[-100:]) < 2_100_000
    link.capacity_bps = 350_000
    after = link.run(10)
    assert max(after[30:]) < 500_000  # 1.5 s after the drop
    assert 200_000 < mean(after[-100:]) < 360_000
    link.capacity_bps = 2_000_000
    again = link.run(12)
    assert mean(again[-40:]) > 1_200_000


def test_the_queue_stays_short_on_a_steady_link():
    link = Link(Bandwidth(), 1_000_000)
    link.run(10)
    link.worst_queue = 0
    targets = link.run(30)
    assert link.worst_queue < 150
    assert mean(targets) > 650_000


def test_loss_of_two_percent_by_radio_does_not_starve():
    link = Link(Bandwidth(), 2_000_000, loss=0.02)
    assert mean(link.run(20)[-100:]) > 900_000


def test_heavy_loss_lowers_the_rate():
    link = Link(Bandwidth(), 5_000_000, loss=0.25)
    assert mean(link.run(10)[-40:]) < 400_000


def test_a_picture_that_needs_little_keeps_what_was_earned_but_no_more():
    estimate = Bandwidth()
    link = Link(estimate, 2_000_000)
    targets = link.run(20, need_bps=200_000)
    assert START_BPS <= targets[-1] < 400_000
    link.run(20)
    targets = link.run(10, need_bps=200_000)
    assert 1_000_000 <= targets[-1] < 2_500_000


class LateLoop(Link):
    """The way ends in a loop that is late: it stands still for some time, then hands on all at once."""

    def __init__(self, estimate: Bandwidth, capacity_bps: float, stall_ms: float, every_ms: float) -> None:
        super().__init__(estimate, capacity_bps)
        chance = random.Random(3)
        self.stalls: list[tuple[float, float]] = []
        at = 0.0
        while at < 60_000:
            begin = at + chance.expovariate(1 / every_ms)
            at = begin + chance.expovariate(1 / stall_ms)
            self.stalls.append((begin, at))

    def send(self, at: float) -> None:
        super().send(at)
        back, packet = self.underway[-1]
        arrival = packet.arrival_ms
        if arrival is not None:
            late = next((end for begin, end in self.stalls if begin <= arrival < end), arrival)
            self.underway[-1] = back + late - arrival, Received(packet.sent_ms, late, packet.size)


@pytest.mark.parametrize(("stall_ms", "every_ms"), [(20, 100), (60, 150), (150, 300)])
def test_a_late_loop_is_not_taken_for_a_full_path(stall_ms: float, every_ms: float):
    link = LateLoop(Bandwidth(), 5_000_000, stall_ms, every_ms)
    assert mean(link.run(20)[100:]) > 1_200_000
    link = LateLoop(Bandwidth(), 5_000_000, stall_ms, every_ms)
    assert mean(link.run(20, need_bps=400_000)[100:]) > 400_000


def test_a_fall_to_a_sixth_shows_in_the_first_picture_that_comes_slowly():
    link = Link(Bandwidth(), 2_000_000)
    link.run(15)
    link.capacity_bps = 330_000
    targets = link.run(0.5)
    assert min(targets) < 400_000
    assert link.estimate.fell_ms > 15_000


def test_what_arrives_bounds_the_cut_for_heavy_loss_from_both_sides():
    estimate = Bandwidth(800_000)
    for k in range(20):  # 100 packets of 1200 bytes a second arrive of 200
        packets = [Received(50 * k + j, 50 * k + j if j % 2 else None, 1200) for j in range(10)]
        estimate.on_feedback(packets, 50.0 * k + 60)
    assert estimate.is_overrun
    assert 300_000 < estimate.target_bps < 900_000


def test_remb_rules_only_without_feedback():
    estimate = Bandwidth()
    estimate.on_remb(300_000, 0)
    assert estimate.target_bps == 300_000
    estimate.on_report(0.5, 100)
    assert estimate.target_bps == pytest.approx(225_000)
    estimate.on_feedback([Received(0, 10, 1200)], 200)
    estimate.on_remb(60_000, 300)
    assert estimate.target_bps > 100_000


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1e5), st.none() | st.floats(0, 1e5), st.integers(0, 1500)), max_size=80)
)
def test_any_report_leaves_a_target_within_bounds(rows: list[tuple[float, float | None, int]]) -> None:
    estimate = Bandwidth()
    for k, row in enumerate(rows):
        estimate.on_feedback([Received(*row)], 10.0 * k)
        assert FLOOR_BPS <= estimate.target_bps <= CEILING_BPS


def test_feedback_of_the_draft_is_read():
    # run of 2 small, then a vector of 2-bit symbols: lost, large negative, small
    chunks = bytes.fromhex("2002") + (0xC000 | 0 << 12 | 2 << 10 | 1 << 8).to_bytes(2, "big")
    deltas = bytes([4, 8]) + (-4).to_bytes(2, "big", signed=True) + bytes([40])
    fci = bytes.fromhex("fffe0005") + (3).to_bytes(3, "big") + b"\0" + chunks + deltas + b"\0\0\3"
    feedback = parse_feedback(fci)
    assert feedback == Feedback(0xFFFE, (193_000, 195_000, None, 194_000, 204_000))


def test_one_bit_vector():
    fci = bytes.fromhex("00010003") + b"\0\0\0\0" + (0x8000 | 0b101 << 11).to_bytes(2, "big") + bytes([1, 2])
    assert parse_feedback(fci).arrivals == (250, None, 750)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_broken_feedback_is_refused_in_words(fci: bytes) -> None:
    try:
        feedback = parse_feedback(fci)
    except ValueError as e:
        assert "feedback" in str(e)
    else:
        assert len(feedback.arrivals) == int.from_bytes(fci[2:4], "big")
