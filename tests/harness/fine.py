"""A camera of fine texture, and how much of it is left in a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from penstock.pipeline.frame import VideoFrame

W, H = 320, 240


def fine_camera(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A y4m of one fine texture; returns its luma (H, W)."""
    rough = np.random.default_rng(1).integers(60, 200, (H // 4, W // 4)).astype(np.uint8)
    luma = np.kron(rough, np.ones((4, 4), np.uint8)).astype(np.uint8)
    with path.open("wb") as sink:
        sink.write(f"YUV4MPEG2 W{W} H{H} F15:1 Ip A1:1 C420jpeg\n".encode())
        for _ in range(15):
            sink.write(b"FRAME\n" + luma.tobytes() + bytes([128]) * (W * H // 2))
    return luma


def likeness(frame: VideoFrame, true: np.ndarray[Any, np.dtype[np.uint8]], box: tuple[float, ...]) -> float:
    """Correlation of fine detail inside the box."""
    gray = cv2.cvtColor(frame.image, cv2.COLOR_RGB2GRAY)
    assert gray.shape == (H, W)
    x, y, w, h = (round(v * s) for v, s in zip(box, (W, H, W, H), strict=True))
    inside = (slice(y + 8, y + h - 8), slice(x + 8, x + w - 8))
    detail = [cv2.Laplacian(cv2.blur(g, (3, 3)).astype(np.float32), cv2.CV_32F)[inside] for g in (gray, true)]
    return float(np.corrcoef(detail[0].ravel(), detail[1].ravel())[0, 1])
