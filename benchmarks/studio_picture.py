"""Take the README's picture of the live studio: real page, real server, real restyle.

    python benchmarks/studio_picture.py docs/studio.png

The camera shows the photograph of Eileen Collins that comes with scikit-image (NASA, public domain).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from skimage import data

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from harness.chromium import chromium, missing, speak, until
from harness.serve import serving

SIZE = (1440, 900)
COLOURS = 256  # of the palette: keeps the file under 300 kB
DONE = "document.querySelectorAll('#talk li.it:not(.open)').length"


def render_portrait(path: Path, frames: int = 90) -> None:
    """A photograph under a camera that sways a little, 640x480@30, as y4m."""
    photograph = data.astronaut()
    with path.open("wb") as sink:
        sink.write(b"YUV4MPEG2 W640 H480 F30:1 Ip A1:1 C420jpeg\n")
        for i in range(frames):
            turn = np.sin(2 * np.pi * i / frames)
            zoom = 1.3 + 0.05 * turn
            camera = np.array([[zoom, 0, 14 * turn - 40], [0, zoom, -20]])
            shown = cv2.warpAffine(photograph, camera, (640, 480), borderMode=cv2.BORDER_REFLECT)
            sink.write(b"FRAME\n" + cv2.cvtColor(shown, cv2.COLOR_RGB2YUV_I420).tobytes())


def main(target: Path) -> None:
    if lacking := missing(voice=True):
        sys.exit(f"this {lacking}")
    with tempfile.TemporaryDirectory() as folder, serving("studio") as served:
        camera, voice, shot = (Path(folder, name) for name in ("cam.y4m", "mic.wav", "shot.png"))
        render_portrait(camera)
        speak("neon", voice, lead_s=6.0, tail_s=12.0)
        with chromium(camera=camera, microphone=voice, size=SIZE) as browser:
            page = browser.pages[0]
            page.goto(served.url)
            page.wait_for_selector("#graph option", state="attached")
            page.click("#start")
            page.wait_for_selector("body[data-state=live]", timeout=60_000)
            until(page, "document.getElementById('remote').videoWidth > 0")
            page.fill("#chat-line", "what do you see")
            page.keyboard.press("Enter")
            until(page, f"{DONE} === 1")
            page.evaluate("document.activeElement.blur()")
            until(page, "document.querySelector('input[value=neon]').checked", 40)
            until(page, f"{DONE} === 2")
            page.wait_for_timeout(1500)  # the picture and the figures follow
            page.screenshot(path=shot)
        Image.open(shot).convert("RGB").quantize(COLOURS, kmeans=2).save(target, optimize=True)
    print(f"{target}: {target.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/studio.png"))
