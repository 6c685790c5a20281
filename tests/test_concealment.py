"""A lost frame of sound is neither a hole nor a click, and the copy in the next packet is used."""

from fractions import Fraction

import av
import numpy as np
import pytest
from aiortc.codecs import get_encoder
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from av.error import FFmpegError
from numpy.typing import NDArray
from penstock.transport import concealment, opus
from penstock.transport.concealment import ConcealingOpus, Repeating, audio_decoder
from penstock.transport.jitter_buffer import EncodedFrame

OPUS = RTCRtpCodecParameters(mimeType="audio/opus", clockRate=48_000, channels=2, payloadType=96)
PCMU = RTCRtpCodecParameters(mimeType="audio/PCMU", clockRate=8000, channels=1, payloadType=0)
needs_libopus = pytest.mark.skipif(opus.library() is None, reason="needs the package libopus0")


def vowel(seconds: float, rate_hz: int = 48_000) -> NDArray[np.int16]:
    """A voice-like sound: pulses at 120 Hz through two formants, loudness waving. (T,)"""
    t = np.arange(int(seconds * rate_hz)) / rate_hz
    sound = sum(
        np.sin(2 * np.pi * 120 * k * t + k * k) * np.exp(-(((120 * k - 600) / 500) ** 2))
        + 0.5 * np.sin(2 * np.pi * 120 * k * t) * np.exp(-(((120 * k - 1700) / 600) ** 2))
        for k in range(1, 25)
    )
    sound = sound * (0.75 + 0.25 * np.sin(2 * np.pi * 3 * t))
    return (6000 * sound / np.abs(sound).max()).astype(np.int16)


def opus_packets(pcm: NDArray[np.int16], *, fec: bool) -> list[bytes]:
    encoder = av.CodecContext.create("libopus", "w")
    encoder.bit_rate, encoder.sample_rate, encoder.layout, encoder.format = 32_000, 48_000, "mono", "s16"  # type: ignore[attr-defined]
    encoder.options = {"application": "voip", "fec": str(int(fec)), "packet_loss": "20" if fec else "0"}
    out: list[bytes] = []
    for at in range(0, len(pcm) - 959, 960):
        frame = av.AudioFrame.from_ndarray(pcm[None, at : at + 960], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, at, Fraction(1, 48_000)
        out += [bytes(p) for p in encoder.encode(frame)]  # type: ignore[attr-defined]
    return out


def decoded(decoder: concealment.AudioDecoder, packets: list[bytes], lost: set[int], *, fec: bool = True):
    """(frames, 960): the left channel."""
    out: list[NDArray[np.int16]] = []
    for k, data in enumerate(packets):
        if k in lost:
            copy = packets[k + 1] if fec and k + 1 not in lost else b""
            frames = decoder.decode(EncodedFrame(copy, k * 960, lost=True))
        else:
            frames = decoder.decode(EncodedFrame(data, k * 960))
        (frame,) = frames
        assert (frame.pts, frame.sample_rate, frame.samples) == (k * 960, 48_000, 960)
        out.append(frame.to_ndarray().reshape(-1, 2)[:, 0].astype(np.int16))
    return np.stack(out).astype(np.float64)


def rms(x: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(x**2)))


@needs_libopus
def test_opus_is_decoded_by_libopus_and_losses_keep_their_place():
    packets = opus_packets(vowel(2), fec=False)
    decoder = audio_decoder(OPUS)
    assert isinstance(decoder, ConcealingOpus)
    clean = decoded(ConcealingOpus(), packets, set())
    lossy = decoded(decoder, packets, {50})
    assert rms(lossy[50]) > 0.2 * rms(clean[50]), "no hole"
    assert rms(lossy[60:] - clean[60:]) < 0.2 * rms(clean[60:]), "and it recovers"


@needs_libopus
def test_a_long_loss_fades():
    packets = opus_packets(vowel(2), fec=False)
    made_up = decoded(ConcealingOpus(), packets, set(range(40, 80)))[40:80]
    assert rms(made_up[-1]) < 0.5 * rms(made_up[0])


@needs_libopus
def test_the_copy_in_the_next_packet_is_nearer_to_the_truth_than_guessing():
    packets = opus_packets(vowel(3), fec=True)
    lost = set(range(40, 140, 10))
    clean = decoded(ConcealingOpus(), packets, set())
    error = {
        fec: rms(
            np.stack([decoded(ConcealingOpus(), packets, lost, fec=fec)[k] - clean[k] for k in sorted(lost)])
        )
        for fec in (True, False)
    }
    assert error[True] < 0.8 * error[False], error


@needs_libopus
def test_garbage_raises_what_the_decoder_thread_catches_and_a_loss_before_all_is_nothing():
    decoder = ConcealingOpus()
    assert decoder.decode(EncodedFrame(b"", 0, lost=True)) == []
    with pytest.raises(FFmpegError):
        decoder.decode(EncodedFrame(b"\xff" * 3, 0))
    assert len(decoder.decode(EncodedFrame(opus_packets(vowel(0.1), fec=False)[0], 960))) == 1


def test_other_codecs_repeat_softly_and_come_back_without_a_click():
    encoder = get_encoder(PCMU)
    decoder = audio_decoder(PCMU)
    assert isinstance(decoder, Repeating)
    assert decoder.decode(EncodedFrame(b"", 0, lost=True)) == []
    pcm = vowel(1, 8000)
    out: list[NDArray[np.int16]] = []
    for k in range(40):
        frame = av.AudioFrame.from_ndarray(pcm[None, k * 160 : k * 160 + 160], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 8000, k * 160, Fraction(1, 8000)
        payloads, _ = encoder.encode(frame)
        made = EncodedFrame(b"", k * 160, lost=True) if 20 <= k < 30 else EncodedFrame(payloads[0], k * 160)
        (given,) = decoder.decode(made)
        assert given.pts == k * 160
        out.append(given.to_ndarray()[0])
    levels = [rms(x.astype(np.float64)) for x in out]
    assert levels[20] > 0.3 * levels[19]
    assert levels[29] < 0.02 * levels[19]
    steps = np.abs(np.diff(np.concatenate(out[18:33]).astype(np.float64)))
    assert steps.max() < 2 * np.abs(np.diff(np.concatenate(out[:18]).astype(np.float64))).max()


def test_without_libopus_opus_is_still_decoded(monkeypatch: pytest.MonkeyPatch):
    packets = opus_packets(vowel(1), fec=False)
    monkeypatch.setattr(opus, "library", lambda: None)
    decoder = audio_decoder(OPUS)
    assert isinstance(decoder, Repeating)
    levels = [rms(frame) for frame in decoded(decoder, packets[:30], {20})]
    assert levels[20] > 0.3 * levels[19]
    with pytest.raises(OSError, match="libopus0"):
        opus.OpusDecoder()
