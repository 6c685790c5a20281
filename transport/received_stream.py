"""One source of a track: its buffer, its clock, and for video what it asks the sender for."""

from __future__ import annotations

from dataclasses import replace

from aiortc.rtcrtpparameters import RTCRtpCodecParameters

from ..pipeline.clock import MS, SECOND
from .audio_buffer import AudioBuffer
from .ingress import IngressTrack
from .jitter_buffer import EncodedFrame, Packet, VideoBuffer, begins_keyframe
from .nack import Nacks

KEYFRAME_INTERVAL = 200 * MS  # between requests, at least: an encoder needs its time, the picture its bits

SENDING = SECOND  # a source silent for longer is not asked: its camera is off


class Stream:
    """rate_hz: of the timestamps; first: the extended one of the first packet, which comes `now`. Times are ns.

    Media time is the track's: it goes on when another source takes the track over.
    """

    def __init__(self, ssrc: int, rate_hz: int, first: int, track: IngressTrack, now: int) -> None:
        self.ssrc = ssrc
        self.rate_hz = rate_hz
        self.heard = 0  # ns, the latest packet
        self.codec: RTCRtpCodecParameters
        self.capture = track.capture
        self._origin = first - self.capture.media(now) * rate_hz // SECOND
        self._counts = track.counts

    def insert(
        self,
        codec: RTCRtpCodecParameters,
        seq: int,
        timestamp: int,
        data: bytes,
        marker: bool,
        arrival: int,
        now: int,
    ) -> None:
        """seq, timestamp: extended; data: without the payload's descriptor; arrival, now: ns."""
        self.codec = codec
        self._insert(Packet(seq, timestamp, data, arrival, marker), now)
        self.heard = now

    def _insert(self, packet: Packet, now: int) -> None:
        raise NotImplementedError

    def media(self, timestamp: int) -> int:
        return (timestamp - self._origin) * SECOND // self.rate_hz

    def report(self, wall: int, timestamp: int, now: int) -> None:
        """A sender report came: at `wall`, ns of the sender's clock, the extended timestamp was that."""
        self.capture.report(wall, self.media(timestamp), now)

    def _relative(self, frames: list[EncodedFrame]) -> list[EncodedFrame]:
        return [EncodedFrame(f.data, f.timestamp - self._origin, f.lost) for f in frames]


class AudioStream(Stream):
    """Sound: in order, holes concealed."""

    def __init__(self, ssrc: int, rate_hz: int, first: int, track: IngressTrack, now: int) -> None:
        super().__init__(ssrc, rate_hz, first, track, now)
        self.buffer = AudioBuffer(rate_hz, track.counts)

    def insert_again(
        self, codec: RTCRtpCodecParameters, seq: int, timestamp: int, data: bytes, arrival: int
    ) -> None:
        """A frame that a later packet carries once more: it counts when the first has not come."""
        if self.buffer.lacks(seq):
            self.codec = codec
            due = self.capture.expected(self.media(timestamp + self.buffer.ticks))
            self.buffer.insert_again(Packet(seq, timestamp, data, arrival), min(arrival, due))

    def _insert(self, packet: Packet, now: int) -> None:
        # it could be sent only when its last sample was recorded
        media = self.media(packet.timestamp + self.buffer.ticks)
        self.capture.heard(media, packet.arrival)
        self.buffer.insert(packet, min(packet.arrival, self.capture.expected(media)))

    def pop(self, now: int) -> list[EncodedFrame]:
        return self._relative(self.buffer.pop(now))

    def next_due(self) -> int | None:
        return self.buffer.deadline()


class VideoStream(Stream):
    """Pictures: whole, in order, and repaired while that can help."""

    def __init__(self, ssrc: int, rate_hz: int, first: int, track: IngressTrack, now: int) -> None:
        super().__init__(ssrc, rate_hz, first, track, now)
        self.buffer = VideoBuffer(track.counts)
        self.nacks = Nacks()
        self.needs_keyframe = False  # the decoder says so
        self._keyframe_asked = -SECOND

    def _insert(self, packet: Packet, now: int) -> None:
        seq = packet.seq
        if self.nacks.misses(seq) and now - self.heard >= self.nacks.hold:
            self.nacks.outage(seq)
            self.buffer.give_up(seq, now)
        self.capture.heard(self.media(packet.timestamp), packet.arrival)
        if not self.nacks.received(seq, now):
            self.needs_keyframe = True
        self.buffer.hold, self.buffer.limit = self.nacks.hold, self.nacks.limit
        key = begins_keyframe(self.codec.name, packet.data)
        if key:
            self.needs_keyframe = False
        # not its arrival: what fills a hole may stand behind it in the socket, while this loop was busy
        self.buffer.insert(replace(packet, arrival=now, key=key))

    def pop(self, now: int) -> list[EncodedFrame]:
        frames = self.buffer.pop(now)
        if self.buffer.next is not None:
            self.nacks.forget(self.buffer.next)
        return self._relative(frames)

    def to_ask(self, now: int) -> list[int]:
        """16-bit numbers of packets to ask for again now."""
        lost = self.nacks.due(now)
        self._counts["asked"] += len(lost)
        return sorted(seq & 0xFFFF for seq in lost)

    def asks_keyframe(self, now: int) -> bool:
        """Should one be asked for now? Counts as asked."""
        if not self._wants_keyframe or now < self._next_request or now - self.heard > SENDING:
            return False
        self._keyframe_asked = now
        self._counts["keyframes_asked"] += 1
        return True

    def next_due(self) -> int | None:
        due = [d for d in (self.buffer.deadline(), self.nacks.next_due()) if d is not None]
        if self._wants_keyframe and self._next_request - self.heard <= SENDING:
            due.append(self._next_request)
        return min(due, default=None)

    @property
    def _wants_keyframe(self) -> bool:
        return self.needs_keyframe or self.buffer.needs_keyframe

    @property
    def _next_request(self) -> int:
        return self._keyframe_asked + max(KEYFRAME_INTERVAL, 2 * self.nacks.rtt)
