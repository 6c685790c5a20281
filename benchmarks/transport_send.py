"""The sending half, against aiortc's encoders, paired in one run.

    make bench AREA=transport_send               # about a minute

rate: each encoder is given 600, 1400 and 250 kb/s for 4 s each, 640x480 at 30/s of a moving scene: what it makes of it,
keyframes, and the CPU of a picture (one thread, process time, with the conversion from RGB).
capped: 15 s over a link of 180 kb/s with a queue of 300 ms and 50 ms of round trip, in simulated time with real encoders:
pictures that arrive whole, the longest gap, the delay. aiortc has no estimate without its receiver's REMB and its H264 and
VP8 go no lower than 500 and 250 kb/s; a plain sender at that rate stands for it.
"""

from __future__ import annotations

import itertools
import sys
import time
from fractions import Fraction
from typing import Any

import av
import numpy as np
from aiortc.codecs.h264 import H264Encoder as AiortcH264
from aiortc.codecs.vpx import Vp8Encoder as AiortcVp8
from penstock.pipeline.clock import MS, SECOND
from penstock.pipeline.frame import VideoFrame
from penstock.transport.bandwidth import Bandwidth, Received
from penstock.transport.encoders import H264Encoder, PictureScaler, Vp8Encoder
from penstock.transport.pacer import Pacer
from penstock.transport.picture_rate import FrameGate, PictureRate
from penstock.transport.uplink import AUDIO_SHARE_BPS, PAYLOAD_SHARE, ROOM
from report import line, percentile

SIZE = (640, 480)
FPS = 30
STEPS = (600_000, 1_400_000, 250_000)
STEP_S = 4
PACKET = 1200
CAP_BPS, QUEUE_MS, ONE_WAY_MS = 180_000, 300.0, 25.0
CAPPED_S = 15
LOWEST = {"h264": 500_000, "vp8": 250_000}  # of aiortc's encoders


def scene(k: int) -> VideoFrame:
    """A soft texture that drifts, with a disc that moves over it: about what a talking head costs."""
    image = np.roll(_BACKGROUND, k // 2, axis=1).copy()
    y, x = np.ogrid[: SIZE[1], : SIZE[0]]
    disc = (x - 320 - 120 * np.sin(k / 20)) ** 2 + (y - 240 - 40 * np.cos(k / 13)) ** 2 < 110**2
    image[disc] = np.roll(_FACE, (k, 2 * k), axis=(0, 1))[disc]
    return VideoFrame(pts=k * SECOND // FPS, image=image)


def _texture(seed: int, cell: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    noise = np.random.default_rng(seed).integers(40, 215, (SIZE[1] // cell, SIZE[0] // cell, 3), np.uint8)
    small = av.VideoFrame.from_ndarray(noise, format="rgb24")
    return small.reformat(width=SIZE[0], height=SIZE[1], interpolation="BICUBIC").to_ndarray()


_BACKGROUND, _FACE = _texture(0, 40), _texture(1, 10)


def rate(codec: str, ours: bool, summary: dict[str, Any]) -> None:
    scaler = PictureScaler()
    mine = (H264Encoder if codec == "h264" else Vp8Encoder)(STEPS[0])
    theirs: Any = (AiortcH264 if codec == "h264" else AiortcVp8)()
    made: list[float] = []
    keyframes, cpu, pictures = 0, 0.0, 0
    for step, bps in enumerate(STEPS):
        size = 0
        for k in range(step * STEP_S * FPS, (step + 1) * STEP_S * FPS):
            frame = scene(k)
            begin = time.process_time()
            if ours:
                mine.bitrate_bps = bps
                data, key = mine.encode(scaler(frame, *SIZE, k * 3000), False, frame.pts)
            else:
                theirs.target_bitrate = bps
                picture = av.VideoFrame.from_ndarray(frame.image, format="rgb24")
                picture.pts, picture.time_base = k * 3000, Fraction(1, 90_000)
                payloads = theirs.encode(picture)[0]
                data = b"".join(payloads)
                key = _is_key(codec, payloads)
            cpu += time.process_time() - begin
            pictures += 1
            keyframes += key
            if k % (STEP_S * FPS) >= FPS:  # the first second is for settling
                size += len(data)
        made.append(round(size * 8 / (STEP_S - 1) / 1000))
    who = "penstock" if ours else "aiortc"
    line(
        bench="rate",
        codec=codec,
        who=who,
        asked_kbps=[b // 1000 for b in STEPS],
        made_kbps=made,
        keyframes=keyframes,
        cpu_ms=round(1000 * cpu / pictures, 2),
    )
    prefix = "" if ours else "aiortc_"
    summary[f"{prefix}{codec}_made_kbps"] = made
    summary[f"{prefix}{codec}_keyframes"] = keyframes
    summary[f"{prefix}{codec}_cpu_ms"] = round(1000 * cpu / pictures, 2)


def _is_key(codec: str, payloads: list[bytes]) -> bool:
    if codec == "vp8":
        return not payloads[0][4] & 1  # after the 4 bytes of aiortc's descriptor
    return any(p[0] & 31 in (5, 7) or (p[0] & 31 == 24 and p[3] & 31 in (5, 7)) for p in payloads)


def capped(codec: str, ours: bool, summary: dict[str, Any]) -> None:
    """1 ms steps. A packet that finds the queue full is lost; its picture and those that build on it too, until a
    keyframe, which is asked for when the loss is reported, at most each 500 ms; nothing is repeated."""
    scaler, shaper, gate = PictureScaler(), PictureRate(), FrameGate()
    estimate = Bandwidth()
    pacer: Pacer[tuple[int, int, int, bool, bool]] = Pacer(estimate.target_bps)
    start = estimate.target_bps if ours else LOWEST[codec]
    encoder = (H264Encoder if codec == "h264" else Vp8Encoder)(start)
    waiting: VideoFrame | None = None
    busy = 0.0  # ms, when the link has sent all that is queued
    reports: list[tuple[float, Received]] = []  # when it reaches us
    arrivals: list[
        tuple[float, int, int, bool, bool]
    ] = []  # when, picture, captured, last packet of it, keyframe
    keyframe, wanted, asked_at = True, False, -1e9
    broken, holes = False, set[int]()
    number, report_at = 0, 50
    shown: list[tuple[float, float]] = []
    for now in range(CAPPED_S * 1000):
        if now * FPS // 1000 != (now - 1) * FPS // 1000:
            waiting = scene(now * FPS // 1000)
        ns = now * MS
        if wanted and now - asked_at > 500:
            wanted, keyframe, asked_at = False, True, float(now)
        if waiting is not None and (not ours or pacer.delay(ns) <= ROOM):
            bps = round((estimate.target_bps - AUDIO_SHARE_BPS) * PAYLOAD_SHARE) if ours else LOWEST[codec]
            bps = max(bps, round(0.4 * estimate.target_bps))
            shape = shaper.shape(bps, *SIZE, ns)
            frame, waiting = waiting, None
            if not ours or gate(ns, shape.fps):
                encoder.bitrate_bps = bps
                size = (shape.width, shape.height) if ours else SIZE
                data, key = encoder.encode(scaler(frame, *size, frame.pts * 9 // 100_000), keyframe, ns)
                keyframe = False
                number += 1
                captured = frame.pts // MS
                parts = [PACKET] * (len(data) // PACKET) + [len(data) % PACKET or 1]
                for k, part in enumerate(parts):
                    pacer.push(
                        "video", (number, part + 50, captured, k == len(parts) - 1, key), part + 50, ns
                    )
        leaving = pacer.pop(ns) if ours else _all(pacer)
        for picture, size, captured, last, key in leaving:
            if busy - now > QUEUE_MS:
                holes.add(picture)
                reports.append((now + 2 * ONE_WAY_MS + QUEUE_MS, Received(now, None, size)))
                continue
            busy = max(busy, float(now)) + size * 8000 / CAP_BPS
            arrival = busy + ONE_WAY_MS
            reports.append((arrival + ONE_WAY_MS, Received(now, arrival, size)))
            arrivals.append((arrival, picture, captured, last, key))
        if now >= report_at:
            report_at += 50
            come = [r for at, r in reports if at <= now]
            reports = [(at, r) for at, r in reports if at > now]
            wanted = wanted or any(r.arrival_ms is None for r in come)
            if come and ours:
                estimate.on_feedback(come, now, 2 * ONE_WAY_MS)
                pacer.target_bps, pacer.congested = estimate.target_bps, estimate.congested
    previous = 0
    for at, picture, captured, last, key in arrivals:
        if any(p in holes for p in range(previous + 1, picture + 1)):
            broken = True
        if key and picture not in holes:
            broken = False
        previous = max(previous, picture - 1 if not last else picture)
        if last and not broken and picture not in holes:
            shown.append((at, at - captured))
    times = [at for at, _ in shown] + [CAPPED_S * 1000]
    figures = {
        "pictures": len(shown),
        "of": CAPPED_S * FPS,
        "max_gap_s": round(max(b - a for a, b in itertools.pairwise(times)) / 1000, 2) if shown else None,
        "delay_ms_p50": round(percentile([d for _, d in shown], 0.5)) if shown else None,
        "delay_ms_p95": round(percentile([d for _, d in shown], 0.95)) if shown else None,
    }
    line(bench="capped", codec=codec, who="penstock" if ours else "plain", kbps=CAP_BPS // 1000, **figures)
    for key_, value in figures.items():
        summary[f"{'' if ours else 'plain_'}capped_{codec}_{key_}"] = value


def _all(pacer: Pacer[Any]) -> list[Any]:
    """Without a pacer: everything at once."""
    lane = pacer._lanes["video"]  # pyright: ignore[reportPrivateUsage]
    leaving = [packet for _, _, packet in lane]
    pacer.clear()
    return leaving


def main() -> None:
    summary: dict[str, Any] = {"area": "transport_send", "size": "640x480@30", "threads": 1}
    for codec in ("h264", "vp8"):
        for ours in (True, False):
            rate(codec, ours, summary)
        for ours in (True, False):
            capped(codec, ours, summary)
    line(**summary)


if __name__ == "__main__":
    sys.exit(main())
