"""What a receiver report tells of one stream: losses, jitter, and when the last sender report came."""

from __future__ import annotations

from aiortc.rtp import RtcpReceiverInfo, clamp_packets_lost

from ..pipeline.clock import SECOND


class Reception:
    """Counts of one SSRC. Sequence numbers and timestamps are extended. Source: RFC 3550 sections 6.4.1, A.3, A.8."""

    def __init__(self, rate_hz: int) -> None:
        self.rate_hz = rate_hz
        self.received = 0
        self.jitter = 0.0  # in ticks of the timestamps
        self._base: int | None = None
        self._newest = 0
        self._transit: int | None = None  # ticks
        self._timestamp: int | None = None
        self._expected_before = 0
        self._received_before = 0
        self._report = 0  # the middle 32 bits of the last sender report's NTP time
        self._reported: int | None = None  # ns, when it came

    @property
    def expected(self) -> int:
        return 0 if self._base is None else self._newest - self._base + 1

    @property
    def lost(self) -> int:
        return clamp_packets_lost(self.expected - self.received)

    def add(self, seq: int, timestamp: int, arrival: int) -> None:
        """A packet came; arrival in ns."""
        self.received += 1
        if self._base is None or seq < self._base:
            self._base = seq
        if seq < self._newest:
            return
        self._newest = seq
        if timestamp != self._timestamp:
            transit = arrival * self.rate_hz // SECOND - timestamp
            if self._transit is not None:
                self.jitter += (abs(transit - self._transit) - self.jitter) / 16
            self._transit, self._timestamp = transit, timestamp

    def sender_report(self, ntp: int, now: int) -> None:
        """ntp: 64-bit NTP time."""
        self._report = ntp >> 16 & 0xFFFFFFFF
        self._reported = now

    def report(self, ssrc: int, now: int) -> RtcpReceiverInfo:
        """Since the last call."""
        expected = self.expected - self._expected_before
        received = self.received - self._received_before
        self._expected_before, self._received_before = self.expected, self.received
        lost = max(0, expected - received)
        delay = 0 if self._reported is None else (now - self._reported) * 65536 // SECOND
        return RtcpReceiverInfo(
            ssrc=ssrc,
            fraction_lost=min(255, (lost << 8) // expected) if expected else 0,
            packets_lost=self.lost,
            highest_sequence=(self._newest - 0x10000) & 0xFFFFFFFF,  # `Unwrap` starts one turn up
            jitter=min(round(self.jitter), 0xFFFFFFFF),
            lsr=self._report,
            dlsr=min(delay, 0xFFFFFFFF),
        )
