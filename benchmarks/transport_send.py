"""The sending half, against aiortc's encoders, paired in one run.

    make bench AREA=transport_send               # about a minute

rate: each encoder is given 600, 1400 and 250 kb/s for 4 s each, 640x480 at 30/s of a moving scene: what it makes of it,
keyframes, and the CPU of a picture (one thread, process time, i420 in).
What they do on a path that carries less is `transport.py`'s to tell (links).
"""

from __future__ import annotations

import sys
import time
from fractions import Fraction
from typing import Any

import av
from aiortc.codecs.h264 import H264Encoder as AiortcH264
from aiortc.codecs.vpx import Vp8Encoder as AiortcVp8
from penstock.pipeline.clock import SECOND
from penstock.pipeline.frame import VideoFrame
from penstock.transport.encoders import H264Encoder, PictureScaler, Vp8Encoder
from report import line
from transport_link import HEIGHT, WIDTH, scene

SIZE = (WIDTH, HEIGHT)
FPS = 30
STEPS = (600_000, 1_400_000, 250_000)
STEP_S = 4


def rate(codec: str, ours: bool, summary: dict[str, Any]) -> None:
    scaler = PictureScaler()
    mine = (H264Encoder if codec == "h264" else Vp8Encoder)(STEPS[0])
    theirs: Any = (AiortcH264 if codec == "h264" else AiortcVp8)()
    made: list[float] = []
    keyframes, cpu, pictures = 0, 0.0, 0
    for step, bps in enumerate(STEPS):
        size = 0
        for k in range(step * STEP_S * FPS, (step + 1) * STEP_S * FPS):
            frame = VideoFrame(pts=k * SECOND // FPS, image=scene(k), format="i420")
            begin = time.process_time()
            if ours:
                mine.bitrate_bps = bps
                data, key = mine.encode(scaler(frame, *SIZE, k * 3000), False, frame.pts)
            else:
                theirs.target_bitrate = bps
                picture = av.VideoFrame.from_ndarray(frame.image, format="yuv420p")
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


def main() -> None:
    summary: dict[str, Any] = {"area": "transport_send", "size": "640x480@30", "threads": 1}
    for codec in ("h264", "vp8"):
        for ours in (True, False):
            rate(codec, ours, summary)
    line(**summary)


if __name__ == "__main__":
    sys.exit(main())
