"""A real headless Chromium with fake devices, for tests and benchmarks.

The fake camera and microphone play files: a picture rendered here, a voice synthesized by what is installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import wave
from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_VOICES = ("flite", "espeak-ng", "espeak")
_FLAGS = (
    "--no-sandbox",  # containers have no user namespaces
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--autoplay-policy=no-user-gesture-required",
)


def missing(*, voice: bool = False) -> str:
    """The package that is not installed, in words for a skip; empty when all is here."""
    if find_spec("playwright") is None:
        return "needs the Python package playwright"
    if not any(shutil.which(name) for name in _BROWSERS):
        return "needs the package chromium"
    if voice and not any(shutil.which(name) for name in _VOICES):
        return "needs the package flite or espeak-ng"
    return ""


@contextmanager
def chromium(
    *,
    camera: Path | None = None,
    microphone: Path | None = None,
    permission: bool = True,
    size: tuple[int, int] = (1280, 800),
    dark: bool = False,
) -> Generator[BrowserContext]:
    """A browser of its own, with its own profile; both are gone at the end, whatever happens.

    camera: a y4m file, shown in a loop; None: Chromium's own test picture. microphone: a wav file, heard
    in a loop from the moment the page opens it; None: beeps. permission False: every question is answered with no.
    """
    from playwright.sync_api import sync_playwright

    path = next(found for name in _BROWSERS if (found := shutil.which(name)))
    flags = [*_FLAGS, "--use-fake-device-for-media-stream"]
    flags.append("--use-fake-ui-for-media-stream" if permission else "--deny-permission-prompts")
    if camera is not None:
        flags.append(f"--use-file-for-fake-video-capture={camera}")
    if microphone is not None:
        flags.append(f"--use-file-for-fake-audio-capture={microphone}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, sync_playwright() as play:
        context = play.chromium.launch_persistent_context(
            profile,
            executable_path=path,
            headless=True,
            args=flags,
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if dark else "light",
            env={**os.environ, "NO_PROXY": "127.0.0.1,localhost"},
        )
        try:
            yield context
        finally:
            context.close()


def until(page: Page, condition: str, timeout_s: float = 20.0) -> None:
    """Wait in the page until the JavaScript expression `condition` is true, looking 20 times a second.

    Unlike Playwright's own wait, it evaluates nothing later, which the page's CSP forbids. Raises: AssertionError.
    """
    look = """(limit) => new Promise((resolve) => {
        const end = performance.now() + limit;
        const look = () => {
            if (CONDITION) resolve(true);
            else if (performance.now() > end) resolve(false);
            else setTimeout(look, 50);
        };
        look();
    })"""
    done = page.evaluate(look.replace("CONDITION", condition), timeout_s * 1000)
    assert done, f"after {timeout_s:g} s still not: {condition}"


# ---------------------------------------------------------------- what the devices play


def speak(text: str, path: Path, *, lead_s: float = 3.0, tail_s: float = 1.0) -> float:
    """Synthesize `text` into a mono 16-bit wav with silence around it. Returns where the voice ends, s."""
    raw = path.with_suffix(".raw.wav")
    voice = next(found for name in _VOICES if (found := shutil.which(name)))
    if Path(voice).name == "flite":
        command = [voice, "-voice", "slt", "-t", text, "-o", str(raw)]
    else:
        command = [voice, "-s", "140", "-w", str(raw), text]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    with wave.open(str(raw)) as source:
        rate = source.getframerate()
        pcm = np.frombuffer(source.readframes(source.getnframes()), np.int16)
    raw.unlink()
    loud = np.flatnonzero(np.abs(pcm.astype(np.int32)) > 600)  # -35 dBFS: below it is breath
    parts = [np.zeros(int(lead_s * rate), np.int16), pcm, np.zeros(int(tail_s * rate), np.int16)]
    with wave.open(str(path), "wb") as sink:
        sink.setnchannels(1)
        sink.setsampwidth(2)
        sink.setframerate(rate)
        sink.writeframes(np.concatenate(parts).tobytes())
    return lead_s + (float(loud[-1]) / rate if len(loud) else 0.0)


def render_silence(path: Path) -> None:
    """A second of a quiet room: Chromium's own fake microphone beeps."""
    with wave.open(str(path), "wb") as sink:
        sink.setparams((1, 2, 16_000, 0, "NONE", ""))
        sink.writeframes(bytes(32_000))


def render_camera(
    path: Path, *, width: int = 640, height: int = 480, frames: int = 60, fps: int = 30
) -> None:
    """A bright, warm picture with a disc that circles, as y4m (4:2:0); it loops without a seam."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    luma = 150 + 60 * x / width
    checks = ((x // 40 + y // 40) % 2) * 30
    with path.open("wb") as sink:
        sink.write(f"YUV4MPEG2 W{width} H{height} F{fps}:1 Ip A1:1 C420jpeg\n".encode())
        for i in range(frames):
            turn = 2 * np.pi * i / frames
            cx, cy = width * (0.5 + 0.25 * np.cos(turn)), height * (0.5 + 0.25 * np.sin(turn))
            disc = (x - cx) ** 2 + (y - cy) ** 2 < (height / 6) ** 2
            u = np.where(disc, 170, 100)[::2, ::2]
            v = np.where(disc, 90, 165)[::2, ::2]
            planes = (np.where(disc, 70, luma - checks), u, v)
            sink.write(b"FRAME\n" + b"".join(p.astype(np.uint8).tobytes() for p in planes))
