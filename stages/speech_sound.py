"""The sound of a speech endpoint's response, decoded as its bytes come.

Source: RFC 3533 (Ogg), RFC 7845 (Opus in Ogg), "Multimedia Programming Interface and Data Specifications 1.0" (WAVE).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Literal, Protocol, TypeAlias, cast

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

Format: TypeAlias = Literal["pcm", "wav", "mp3", "opus"]
Pcm: TypeAlias = "NDArray[np.int16]"  # (T,) mono

_MAX_HEADER = 256 * 1024  # bytes in front of the sound: tags, a cover
_RATES = (8_000, 96_000)
_OPUS_RATE = 48_000  # RFC 7845, 5.1: what pre-skip counts in
_MAX_PACKET = 64 * 1024  # bytes; RFC 7845, 6 lets a decoder refuse larger ones
_WAVE_PCM, _WAVE_FLOAT, _WAVE_EXTENSIBLE = 1, 3, 0xFFFE


class BadSound(Exception):
    """What came is not the sound it should be."""


class SoundDecoder(Protocol):
    rate_hz: int  # of what `feed` gives, from its first samples on

    def feed(self, data: bytes) -> Pcm:
        """The samples that `data` completes. Raises: BadSound."""
        ...

    def finish(self) -> Pcm:
        """The last samples. Raises: BadSound."""
        ...


class Sound:
    """Decodes whichever of the formats comes: some servers answer in one that was not asked for.

    Headerless PCM (16 bit, little-endian, mono at `pcm_rate_hz`) can only be believed, so it has to be expected.
    """

    def __init__(self, expected: Format, pcm_rate_hz: int) -> None:
        self._expected: Format = expected
        self.rate_hz = pcm_rate_hz
        self._head = b""
        self._decoder: SoundDecoder | None = None

    def feed(self, data: bytes) -> Pcm:
        """Any cut of the bytes gives the same samples. Raises: BadSound."""
        if self._decoder is None:
            self._head += data
            if len(self._head) < 4:
                return _NOTHING
            self._decoder, data, self._head = self._choose(self._head), self._head, b""
        pcm = self._decoder.feed(data)
        self.rate_hz = self._decoder.rate_hz
        return pcm

    def finish(self) -> Pcm:
        """What the decoder held back. Raises: BadSound."""
        return _NOTHING if self._decoder is None else self._decoder.finish()

    def _choose(self, head: bytes) -> SoundDecoder:
        if head.startswith(b"RIFF"):
            return _Wav()
        if head.startswith(b"OggS"):
            return _OggOpus()
        if head.startswith(b"ID3") or (self._expected == "mp3" and head[0] == 0xFF and head[1] >= 0xE0):
            return _Mp3(self.rate_hz)
        if self._expected == "pcm":
            return _Raw(self.rate_hz)
        raise BadSound(f"the response is no {self._expected}")


_NOTHING: Pcm = np.zeros(0, np.int16)


class _Raw:
    """Interleaved 16-bit integers or 32-bit floats, little-endian."""

    def __init__(self, rate_hz: int, channels: int = 1, *, floats: bool = False) -> None:
        self.rate_hz, self._channels = rate_hz, channels
        self._type = np.dtype("<f4" if floats else "<i2")
        self._rest = b""

    def feed(self, data: bytes) -> Pcm:
        data = self._rest + data
        whole = len(data) - len(data) % (self._type.itemsize * self._channels)
        self._rest = data[whole:]
        samples = np.frombuffer(data[:whole], self._type).reshape(-1, self._channels)  # (T, C)
        if self._type.kind == "f":
            samples = np.clip(np.nan_to_num(samples, posinf=1, neginf=-1), -1, 1) * np.float32(32767)
        if self._channels > 1:
            samples = samples.mean(axis=1, dtype=np.float32)
        return samples.reshape(-1).astype(np.int16)

    def finish(self) -> Pcm:
        return _NOTHING  # half a sample is none


class _Wav:
    """A WAVE file that is being written: its sizes say nothing yet, so the sound goes to the end."""

    rate_hz = 0

    def __init__(self) -> None:
        self._head = b""
        self._raw: _Raw | None = None

    def feed(self, data: bytes) -> Pcm:
        if self._raw is None:
            self._head += data
            if (begin := self._read_header()) is None:
                if len(self._head) > _MAX_HEADER:
                    raise BadSound(f"the wav has no sound in its first {_MAX_HEADER} bytes")
                return _NOTHING
            data, self._head = self._head[begin:], b""
        assert self._raw is not None
        return self._raw.feed(data)

    def finish(self) -> Pcm:
        if self._raw is None:
            raise BadSound("the wav ended in its header")
        return _NOTHING

    def _read_header(self) -> int | None:
        """Where the sound begins; None until that is known."""
        head, at, layout = self._head, 12, None
        if len(head) >= 12 and head[8:12] != b"WAVE":
            raise BadSound("the response is a RIFF file, but no wav")
        while len(head) >= at + 8:
            size = int.from_bytes(head[at + 4 : at + 8], "little")
            if head[at : at + 4] == b"data":
                if layout is None:
                    raise BadSound("the wav does not say its format")
                self._raw = layout
                self.rate_hz = layout.rate_hz
                return at + 8
            if head[at : at + 4] == b"fmt ":
                if len(head) < at + 8 + size:
                    return None
                layout = _wave_layout(head[at + 8 : at + 8 + size])
            at += 8 + size + size % 2
        return None


def _wave_layout(fmt: bytes) -> _Raw:
    if len(fmt) < 16:
        raise BadSound("the wav's format is cut short")
    tag, channels, rate_hz, _, _, bits = struct.unpack_from("<HHIIHH", fmt)
    if tag == _WAVE_EXTENSIBLE and len(fmt) >= 26:
        tag = int.from_bytes(fmt[24:26], "little")
    if (tag, bits) not in ((_WAVE_PCM, 16), (_WAVE_FLOAT, 32)) or not 1 <= channels <= 8:
        raise BadSound(
            f"the wav has format {tag}, {bits} bit, {channels} channels; 16-bit PCM and 32-bit float are accepted"
        )
    if not _RATES[0] <= rate_hz <= _RATES[1]:
        raise BadSound(f"the wav has {rate_hz} Hz; {_RATES[0]} to {_RATES[1]} are accepted")
    return _Raw(rate_hz, channels, floats=tag == _WAVE_FLOAT)


class _Compressed:
    """Packets of one codec → mono at `rate_hz`."""

    def __init__(self, codec: str, name: str, rate_hz: int) -> None:
        self.rate_hz, self._name = rate_hz, name
        self.codec = av.CodecContext.create(codec, "r")
        assert isinstance(self.codec, av.AudioCodecContext)
        self._audio = self.codec
        self._resampler = av.AudioResampler(format="s16", layout="mono", rate=rate_hz)
        self.any = False  # something has been decoded

    def decode(self, packets: list[av.Packet[Any]] | None) -> Pcm:
        """None: no more come. Raises: BadSound."""
        parts: list[Pcm] = []
        try:
            for packet in packets if packets is not None else [None]:
                for frame in self._audio.decode(packet):
                    frame.pts = None
                    self.any = True
                    parts += map(_samples, self._resampler.resample(frame))
            if packets is None and self.any:
                parts += map(_samples, self._resampler.resample(None))
        except (FFmpegError, ValueError) as e:
            raise BadSound(f"the {self._name} is broken") from e
        return np.concatenate(parts) if parts else _NOTHING


def _samples(frame: av.AudioFrame) -> Pcm:
    return cast("Pcm", frame.to_ndarray()).reshape(-1)  # (1, T) → (T,)


class _Mp3:
    def __init__(self, rate_hz: int) -> None:
        self.rate_hz = rate_hz
        self._codec = _Compressed("mp3float", "mp3", rate_hz)
        self._head = b""
        self._left: int | None = None  # bytes of the tag that are still to come; None until known

    def feed(self, data: bytes) -> Pcm:
        if self._left is None:
            self._head += data
            if len(self._head) < 10:
                return _NOTHING
            self._left, data, self._head = _id3_size(self._head), self._head, b""
        skipped = min(self._left, len(data))
        self._left -= skipped
        if skipped == len(data):
            return _NOTHING
        try:
            packets = self._codec.codec.parse(data[skipped:])
        except (FFmpegError, ValueError) as e:
            raise BadSound("the mp3 is broken") from e
        return self._codec.decode(packets)

    def finish(self) -> Pcm:
        try:
            packets = self._codec.codec.parse(None)
        except (FFmpegError, ValueError) as e:
            raise BadSound("the mp3 is broken") from e
        return np.concatenate([self._codec.decode(packets), self._codec.decode(None)])


def _id3_size(head: bytes) -> int:
    """Bytes of the ID3v2 tag, whose sizes have 7 bits a byte; 0 for none."""
    if not head.startswith(b"ID3"):
        return 0
    size = 0
    for byte in head[6:10]:
        size = size << 7 | byte & 0x7F
    if size > _MAX_HEADER:
        raise BadSound(f"the mp3 has a tag of {size} bytes; {_MAX_HEADER} are accepted")
    return 10 + size


class _OggOpus:
    rate_hz = _OPUS_RATE

    def __init__(self) -> None:
        self._data = b""
        self._packet = b""  # one that goes on in the next page
        self._count = 0  # packets seen
        self._skip = 0  # samples of the decoder's start
        self._codec: _Compressed | None = None

    def feed(self, data: bytes) -> Pcm:
        self._data += data
        packets = [av.Packet(p) for p in self._packets() if p]
        if self._codec is None or not packets:
            return _NOTHING
        pcm = self._codec.decode(packets)
        skipped = min(self._skip, len(pcm))
        self._skip -= skipped
        return pcm[skipped:]

    def finish(self) -> Pcm:
        if self._codec is None:
            raise BadSound("the ogg ended in its header")
        pcm = self._codec.decode(None)
        return pcm[min(self._skip, len(pcm)) :]

    def _packets(self) -> Iterator[bytes]:
        """The sound's packets, of all whole pages."""
        while len(self._data) >= 27:
            if not self._data.startswith(b"OggS"):
                raise BadSound("the ogg is broken: a page begins otherwise")
            lacing = self._data[27 : 27 + self._data[26]]
            at = 27 + self._data[26]
            if len(self._data) < at + sum(lacing):  # at most 65 kB
                return
            for size in lacing:
                self._packet += self._data[at : at + size]
                at += size
                if len(self._packet) > _MAX_PACKET:
                    raise BadSound(f"the ogg has a packet of over {_MAX_PACKET} bytes")
                if size < 255:
                    packet, self._packet = self._packet, b""
                    self._count += 1
                    if self._count == 1:
                        self._begin(packet)
                    elif self._count > 2:  # the second holds tags
                        yield packet
            self._data = self._data[at:]

    def _begin(self, head: bytes) -> None:
        if not head.startswith(b"OpusHead") or len(head) < 19:
            raise BadSound("the ogg holds no Opus")
        self._skip = int.from_bytes(head[10:12], "little")
        self._codec = _Compressed("libopus", "opus", _OPUS_RATE)
        self._codec.codec.extradata = head
