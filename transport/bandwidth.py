"""How much may we send? The sender's own estimate, from what receivers report. Policy only: time is given.

With transport-wide feedback: the trend of the one-way delay (a queue that grows) and the loss, as in Google
congestion control. Without it: the receiver's REMB, bounded by the loss of its reports.
Source: draft-ietf-rmcat-gcc-02 (sections 4, 5.4 to 6); its trendline filter as in WebRTC, a least-squares fit
where the draft has a Kalman filter.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

FLOOR_BPS = 50_000
CEILING_BPS = 3_000_000
START_BPS = 300_000  # as browsers do; it doubles each second until something says that it is enough
BURST_MS = 5.0  # packets sent within it are one group (section 5.2)
WINDOW = 20  # groups that the trend is fitted to
GAIN = 4.0  # of the trend against the threshold, WebRTC's
SMOOTHING = 0.9
THRESHOLD_MS = 12.5
OVERUSE_MS = 10.0  # that the trend must last
BACKOFF = 0.85  # section 5.5, beta
CUT_MOST = 0.5  # of the estimate stays, whatever was received
RECEIVED_MS = 500.0  # window of the received rate ...
SUDDEN_MS = 150.0  # ... and while a queue grows
# a late loop hands on what waited in one burst: only a delay that each packet of that time had is a queue
STANDING_MS = 100.0
STANDING_GROUPS = 9  # of packets, at least
DRAIN = 60.0  # ms of standing queue that are drained by sending less
FELL_MS = 400.0  # that a queue surely stands after its link's rate has fallen, before its arrivals show it
TRAIN, TRAIN_SENT_MS = 4, 25.0  # packets sent within that time, one picture's ...
TRAIN_MS = 60.0  # ... whose arrival takes that long
STANDING = 10.0  # ms above the least
QUIET_MS = 3000.0  # without overuse: the old capacity no longer binds
LOSS_HIGH, LOSS_LOW = 0.10, 0.02  # section 6
LOSS_GRAVE, GRAVE_MS = 0.30, 150.0  # a queue runs over: that is not waited out


@dataclass(frozen=True, slots=True)
class Received:
    """One packet that we sent, as the receiver saw it. arrival_ms: on its clock; None when it did not come."""

    sent_ms: float
    arrival_ms: float | None
    size: int  # bytes


class Trend:
    """Does a queue build up? The slope of the accumulated delay over arrival time, against a threshold that
    adapts to what is normal on this path."""

    def __init__(self) -> None:
        self.state = "normal"  # "overuse": a queue grows, "underuse": it drains
        # by how much every packet of the last STANDING_MS was slower than the fastest lately
        self.queue_ms = 0.0
        self._group: list[float] | None = None  # first sent, last sent, last arrival
        self._before: list[float] | None = None
        self._points: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        self._delays: deque[float] = deque(maxlen=600)
        self._recent: deque[tuple[float, float]] = deque(maxlen=64)  # (arrival ms, accumulated delay)
        self._accumulated = 0.0
        self._smoothed = 0.0
        self._first: float | None = None
        self._count = 0
        self._threshold = THRESHOLD_MS
        self._over_ms = 0.0
        self._last_slope = 0.0
        self._updated: float | None = None

    def packet(self, sent_ms: float, arrival_ms: float) -> None:
        group = self._group
        if group is None:
            self._group = [sent_ms, sent_ms, arrival_ms]
            return
        if sent_ms < group[0]:
            return  # out of order: its group is over
        if sent_ms - group[0] <= BURST_MS:
            group[1] = max(group[1], sent_ms)
            group[2] = max(group[2], arrival_ms)
            return
        if self._before is not None:
            self._step(
                (group[2] - self._before[2]) - (group[1] - self._before[1]),
                group[2],
                group[1] - self._before[1],
            )
        self._before, self._group = group, [sent_ms, sent_ms, arrival_ms]

    def _step(self, variation_ms: float, arrival_ms: float, interval_ms: float) -> None:
        if abs(variation_ms) > 3000:  # the receiver's clock jumped
            self._points.clear()
            self._accumulated = self._smoothed = 0.0
            return
        if self._first is None:
            self._first = arrival_ms
        self._count = min(self._count + 1, 60)
        self._accumulated += variation_ms
        self._delays.append(self._accumulated)
        self._recent.append((arrival_ms, self._accumulated))
        while len(self._recent) > STANDING_GROUPS and self._recent[0][0] < arrival_ms - STANDING_MS:
            self._recent.popleft()
        self.queue_ms = min(delay for _, delay in self._recent) - min(self._delays)
        self._smoothed = SMOOTHING * self._smoothed + (1 - SMOOTHING) * self._accumulated
        self._points.append((arrival_ms - self._first, self._smoothed))
        slope = _slope(self._points) if len(self._points) == WINDOW else 0.0
        self._judge(slope, interval_ms, arrival_ms)

    def _judge(self, slope: float, interval_ms: float, now_ms: float) -> None:
        trend = self._count * slope * GAIN
        if trend > self._threshold:
            self._over_ms += interval_ms
            if self._over_ms > OVERUSE_MS and slope >= self._last_slope:
                self.state = "overuse" if self.queue_ms > STANDING else "normal"
        else:
            self._over_ms = 0.0
            self.state = "underuse" if trend < -self._threshold else "normal"
        self._last_slope = slope
        # section 5.4: the threshold follows the trend, slowly up and slowly down, or TCP beside us starves us
        elapsed = min(now_ms - self._updated, 100.0) if self._updated is not None else 0.0
        if abs(trend) < self._threshold + 15:
            rate = 0.0087 if abs(trend) > self._threshold else 0.039
            self._threshold += rate * (abs(trend) - self._threshold) * max(0.0, elapsed)
            self._threshold = min(600.0, max(6.0, self._threshold))
        self._updated = now_ms


def _slope(points: Iterable[tuple[float, float]]) -> float:
    points = list(points)
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


class Train:
    """What did the narrowest link make of packets sent one after the other? A fall of its rate shows in a single picture.

    The median distance counts: a loop that stood still makes one long one, or none at all.
    Source: packet-train dispersion, Dovrolis, Ramanathan and Moore 2001.
    """

    def __init__(self) -> None:
        self._sent_ms = -1e9  # of the first
        self._arrivals: list[float] = []
        self._bytes = 0

    def packet(self, sent_ms: float, arrival_ms: float, size: int) -> float | None:
        """The link's rate, bits/s, when this packet shows that a picture takes too long."""
        if not 0 <= sent_ms - self._sent_ms <= TRAIN_SENT_MS:
            self._sent_ms, self._arrivals, self._bytes = sent_ms, [arrival_ms], 0
            return None
        self._arrivals.append(arrival_ms)
        self._bytes += size
        count = len(self._arrivals) - 1
        if count + 1 < TRAIN or arrival_ms - self._arrivals[0] < TRAIN_MS:
            return None
        between = sorted(b - a for a, b in itertools.pairwise(self._arrivals))[count // 2]
        return self._bytes / count * 8000 / between if between > 0 else None


class ReceivedRate:
    """bits/s that arrived, over the last half second of the receiver's time."""

    def __init__(self) -> None:
        self._packets: deque[tuple[float, int]] = deque(maxlen=4096)  # (arrival ms, bytes)

    def packet(self, arrival_ms: float, size: int) -> None:
        self._packets.append((arrival_ms, size))
        while self._packets[0][0] < arrival_ms - RECEIVED_MS:
            self._packets.popleft()

    @property
    def bps(self) -> float | None:
        """None until it has seen enough to tell."""
        return self.over(RECEIVED_MS)

    def over(self, window_ms: float) -> float | None:
        """The same over the last so many ms, at most RECEIVED_MS."""
        if len(self._packets) < 4:
            return None
        newest = self._packets[-1][0]
        recent = [packet for packet in self._packets if packet[0] >= newest - window_ms]
        span_ms = newest - recent[0][0]
        if span_ms < window_ms / 3:
            return None
        return sum(size for _, size in recent[1:]) * 8000 / span_ms


class Bandwidth:
    """The estimate of one connection. `target_bps` is what all streams together may send."""

    def __init__(
        self, start_bps: int = START_BPS, floor_bps: int = FLOOR_BPS, ceiling_bps: int = CEILING_BPS
    ) -> None:
        self.floor_bps = floor_bps
        self.ceiling_bps = ceiling_bps
        self.trend = Trend()
        self.loss = 0.0  # of the last half second
        self.source = "start"  # "feedback", "remb" later
        self._rate = ReceivedRate()
        self._train = Train()
        self._delay_bps = float(start_bps)
        self._loss_bps = float(ceiling_bps)
        self._remb_bps = float(ceiling_bps)
        self._capacity_bps: float | None = None  # where overuse began the last time
        self._last_ms: float | None = None
        self._cut_ms = -1e9
        self._lost = self._seen = 0
        self._loss_ms = 0.0
        self.fell_ms = -1e9  # when the link's rate was seen to have fallen to less than half

    @property
    def target_bps(self) -> int:
        if self.source == "remb":
            wanted = min(self._remb_bps, self._loss_bps)
        else:
            wanted = min(self._delay_bps, self._loss_bps)
        return round(max(self.floor_bps, min(self.ceiling_bps, wanted)))

    @property
    def congested(self) -> bool:
        return self.trend.state == "overuse"

    @property
    def is_overrun(self) -> bool:
        """Is so much lost that no repeat will mend it?"""
        return self.loss > LOSS_GRAVE

    @property
    def is_standing(self) -> bool:
        """Is there a queue that only sending less will drain?"""
        return self.trend.queue_ms > DRAIN or (self._last_ms or 0.0) - self.fell_ms < FELL_MS

    @property
    def _is_starting(self) -> bool:
        return self._capacity_bps is None and self._loss_bps >= self.ceiling_bps

    def on_feedback(self, packets: Iterable[Received], now_ms: float, rtt_ms: float = 100.0) -> None:
        """One report, in the order of sending."""
        self.source = "feedback"
        for packet in packets:
            self._seen += 1
            if packet.arrival_ms is None:
                self._lost += 1
                continue
            self.trend.packet(packet.sent_ms, packet.arrival_ms)
            self._rate.packet(packet.arrival_ms, packet.size)
            link_bps = self._train.packet(packet.sent_ms, packet.arrival_ms, packet.size)
            if link_bps is not None and link_bps < BACKOFF * self._delay_bps:
                if link_bps < CUT_MOST * self._delay_bps:
                    self.fell_ms = now_ms
                self._delay_bps = max(BACKOFF * link_bps, self.floor_bps)
                self._capacity_bps, self._cut_ms = link_bps, now_ms
        quick = self._lost > LOSS_GRAVE * self._seen
        if self._seen >= 20 and now_ms - self._loss_ms >= (GRAVE_MS if quick else RECEIVED_MS):
            self._on_loss(self._lost / self._seen, now_ms)
            self._lost = self._seen = 0
        self._control(now_ms, rtt_ms)

    def _control(self, now_ms: float, rtt_ms: float) -> None:
        elapsed_s = min(1.0, (now_ms - self._last_ms) / 1000) if self._last_ms is not None else 0.0
        self._last_ms = now_ms
        received = self._rate.bps
        state = self.trend.state
        if state == "overuse" and received is not None:  # of the capacity of now, not of before it fell
            received = min(received, self._rate.over(SUDDEN_MS) or received)
        if state == "overuse":
            if now_ms - self._cut_ms > max(150.0, rtt_ms + 100) and received is not None:
                # never below half at once: while little is sent, little was received, and says nothing of the path
                cut = max(BACKOFF * received, CUT_MOST * self._delay_bps, self.floor_bps)
                self._delay_bps = min(self._delay_bps, cut)
                self._capacity_bps = received
                self._cut_ms = now_ms
        elif state == "normal":
            self._delay_bps = self._raised(elapsed_s, now_ms, rtt_ms)
            if received is not None:  # what was never sent was never tried
                earned = min(self._delay_bps, self._capacity_bps or START_BPS)  # kept while little is needed
                self._delay_bps = min(self._delay_bps, max(1.5 * received + 10_000, earned))
        self._delay_bps = max(self.floor_bps, min(self.ceiling_bps, self._delay_bps))

    def _raised(self, elapsed_s: float, now_ms: float, rtt_ms: float) -> float:
        quiet_ms = now_ms - self._cut_ms
        capacity = self._capacity_bps
        if capacity is not None and quiet_ms < QUIET_MS and self._delay_bps > 0.8 * capacity:
            # near where it was too much: about one packet each response time (section 5.5)
            return self._delay_bps + elapsed_s * 1000 / (rtt_ms + 100) * 1200 * 8 * 0.5
        if self._is_starting:
            return self._delay_bps * 2**elapsed_s
        # the draft raises by 8 %/s; twenty seconds of a poor picture after each dip are too long for us
        return self._delay_bps * (1 + (0.08 if quiet_ms < 1000 else 0.35)) ** elapsed_s

    def on_remb(self, bps: float, now_ms: float) -> None:
        """The receiver's own estimate; ignored where it gives feedback."""
        if self.source == "feedback":
            return
        self.source = "remb"
        self._remb_bps = max(self.floor_bps, bps)

    def on_report(self, fraction_lost: float, now_ms: float) -> None:
        """The loss in a receiver report (0 to 1); ignored where there is feedback."""
        if self.source != "feedback":
            self._on_loss(fraction_lost, now_ms)

    def _on_loss(self, lost: float, now_ms: float) -> None:
        """Section 6: loss without delay is the radio's until it is heavy."""
        self.loss = lost
        elapsed_s = min(2.0, (now_ms - self._loss_ms) / 1000) if self._loss_ms else 0.0
        self._loss_ms = now_ms
        received = self._rate.bps
        if lost > LOSS_HIGH:
            base = min(self._loss_bps, float(self.target_bps))
            cut = base * (1 - 0.5 * lost)
            if received is not None:  # what arrives is what the path carries, not more and not much less
                cut = max(min(cut, received), min(base, BACKOFF * received))
            self._loss_bps = max(self.floor_bps, cut)
        elif lost < LOSS_LOW:
            proven = min(received or 0.0, self._delay_bps)
            self._loss_bps = min(self.ceiling_bps, max(self._loss_bps * 1.25**elapsed_s, proven))
