"""FFmpeg's video encoders set up for live sending: what those of all codecs have in common."""
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
from av.video.frame import PictureType

VIDEO_HZ = 90_000  # the RTP clock of all video payloads (RFC 3551 section 5)
NO_KEYFRAMES = 3000  # pictures between keyframes that nobody asked for
FIRST_FPS = 30.0  # until the real rate is known


def open_context(codec: str, picture: av.VideoFrame, bitrate_bps: int, fps: float, **options: object) -> Any:
    context = av.CodecContext.create(codec, "w")
    assert isinstance(context, av.VideoCodecContext)
    context.width, context.height = picture.width, picture.height
    context.pix_fmt = "yuv420p"
    context.time_base = Fraction(1, VIDEO_HZ)
    context.framerate = Fraction(round(fps * 1000), 1000)
    context.bit_rate = bitrate_bps
    context.gop_size = NO_KEYFRAMES
    context.thread_count = 1  # threads of one picture wait for each other on a busy machine
    context.options = {key: str(value) for key, value in options.items()}
    return context


def encode_with(context: Any, picture: av.VideoFrame, keyframe: bool) -> tuple[bytes, bool]:
    picture.pict_type = PictureType.I if keyframe else PictureType.NONE
    packets = context.encode(picture)
    return b"".join(map(bytes, packets)), any(p.is_keyframe for p in packets)
