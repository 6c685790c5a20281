"""Sound leaves in order, holes are marked, and no delay outlives its cause."""

from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.pipeline.clock import MS, SECOND
from penstock.transport.audio_buffer import CAPACITY, CONCEAL, MAX_TARGET, AudioBuffer, Target
from penstock.transport.capture_clock import CaptureClock
from penstock.transport.jitter_buffer import EncodedFrame, Packet


class Line:
    """A stream of 20 ms frames through a clock and a buffer; `out` has (time, frame)."""

    def __init__(self) -> None:
        self.buffer = AudioBuffer(48_000)
        self.capture = CaptureClock()
        self.out: list[tuple[int, EncodedFrame]] = []
        self.now = 0

    def arrive(self, seq: int, now: int) -> None:
        self.wait(now)
        self.capture.heard(seq * 20 * MS, now)
        packet = Packet(seq + 1000, seq * 960, b"%d" % seq, now)
        self.buffer.insert(packet, min(now, self.capture.expected(seq * 20 * MS)))
        self.pop(now)

    def wait(self, now: int) -> None:
        while (due := self.buffer.deadline()) is not None and due < now:
            self.pop(max(due, self.now))
        self.now = now

    def pop(self, now: int) -> None:
        before = len(self.out)
        self.out += [(now, frame) for frame in self.buffer.pop(now)]
        if len(self.out) == before and (due := self.buffer.deadline()) is not None:
            assert due > now - 10, "a deadline that pop does not move"

    def delays(self) -> list[int]:
        """ms between each frame's capture and its leaving, apart from made-up ones."""
        return [(at - f.timestamp // 960 * 20 * MS) // MS for at, f in self.out if not f.lost]


def test_on_a_calm_network_packets_leave_at_once():
    line = Line()
    for k in range(100):
        line.arrive(k, k * 20 * MS + (k % 3) * MS)
    assert line.delays() == [k % 3 for k in range(100)]
    assert line.buffer.target.value == 0


def test_one_lost_packet_is_concealed_and_delays_nothing():
    line = Line()
    for k in [*range(50), *range(51, 100)]:
        line.arrive(k, k * 20 * MS)
    assert set(line.delays()) == {0}
    (lost,) = [f for _, f in line.out if f.lost]
    assert (lost.timestamp, lost.data) == (50 * 960, b"51"), "with the packet that may carry its copy"
    assert [f.timestamp // 960 for _, f in line.out] == list(range(100))


def test_a_stall_delays_nothing_after_it():
    line = Line()
    for k in range(200):
        line.arrive(k, max(k * 20 * MS, 2500 * MS) if k >= 100 else k * 20 * MS)
    delays = line.delays()
    assert len(delays) == 200
    assert max(delays[100:125]) == 500
    assert set(delays[126:]) == {0}


def test_jitter_raises_the_target_and_calm_lowers_it_within_three_seconds():
    line = Line()
    jitter = [0, 55, 10, 40, 0, 30, 50, 5]
    last = 0
    for k in range(400):
        last = max(last, k * 20 * MS + jitter[k % 8] * MS)
        line.arrive(k, last)
    assert 30 * MS <= line.buffer.target.value <= 80 * MS
    for k in range(401, 551):
        line.arrive(k, k * 20 * MS)
    assert line.buffer.target.value == 0
    assert line.delays()[-1] == 0


def test_a_packet_out_of_order_is_waited_for_once_the_network_does_that_often():
    line = Line()
    order = [k for base in range(0, 1000, 2) for k in (base + 1, base)]
    for k, seq in enumerate(order):
        line.arrive(seq, k * 20 * MS)
    late = sum(f.lost for _, f in line.out)
    assert late < 20
    assert sum(f.lost for _, f in line.out[500:]) == 0
    times = [f.timestamp for _, f in line.out]
    assert times == sorted(times)


def test_a_long_hole_stays_a_hole():
    line = Line()
    for k in [*range(10), *range(10 + CONCEAL + 1, 40)]:
        line.arrive(k, k * 20 * MS)
    assert not any(f.lost for _, f in line.out)
    assert line.buffer.counts["lost"] == CONCEAL + 1


def test_the_target_is_bounded():
    target = Target()
    for k in range(1000):
        target.observe(5 * SECOND, k * 20 * MS)
    assert target.value == MAX_TARGET
    for k in range(1000, 1150):
        target.observe(0, k * 20 * MS)
    assert target.value == 0


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from([0, 0, 0, 5, 30, 90, 400, 2000, None, "twice"]), min_size=1, max_size=150))
def test_any_network_gives_each_packet_once_in_order(fates: list[int | str | None]):
    arrivals: list[tuple[int, int]] = []
    for k, fate in enumerate(fates):
        if fate == "twice":
            arrivals += [(k * 20 * MS, k), (k * 20 * MS + 7 * MS, k)]
        elif isinstance(fate, int):
            arrivals.append((k * 20 * MS + fate * MS, k))
    line = Line()
    for at, seq in sorted(arrivals):
        line.arrive(seq, at)
        assert len(line.buffer) <= CAPACITY + 1
    line.wait(line.now + 10 * SECOND)
    times = [f.timestamp for _, f in line.out]
    assert times == sorted(set(times))
    counts = line.buffer.counts
    assert len(line.buffer) == 0
    assert counts["delivered"] + counts["late"] + counts["duplicate"] + counts["dropped"] == len(arrivals)
    assert counts["delivered"] == sum(not f.lost for _, f in line.out)
    assert counts["concealed"] == sum(f.lost for _, f in line.out) <= counts["lost"]
