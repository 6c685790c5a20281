"""The graph `restyle` as a person meets it: a real Chromium, the real server, a clock in the picture.

Without a prompt the model draws the picture as it is, at its full cost: so the clock can be read on the other side.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

GRAPH = """penstock: 1
graph: restyle-clock
slo: {{glass_to_glass: 400ms}}
nodes:
  cam:     {{use: webrtc.in, video: 640x480@30, audio: 48k/mono/20ms}}
  restyle: {{use: diffusion.stream, in: cam.video, side: {side}, budget: 150ms, params: {{skip_still: false}}}}
  out:     {{use: webrtc.out, in: {{video: restyle.video, audio: cam.audio}}}}
"""


def chromium_figure(seconds: float, side: int = 256) -> dict[str, Any]:
    """fps and glass-to-glass, ms; or why not."""
    head: dict[str, Any] = {
        "figure": "chromium",
        "side": side,
        "steps": 1,
        "goal": ">= 20 fps, p50 <= 150 ms",
    }
    from harness.chromium import chromium, missing, render_silence, until
    from harness.serve import serving
    from studio import READ_STAMPS, live

    if lacking := missing():
        return head | {"skipped": f"it {lacking}"}
    with tempfile.TemporaryDirectory() as folder:
        graph, silence = Path(folder, "clock.yaml"), Path(folder, "silence.wav")
        graph.write_text(GRAPH.format(side=side))
        render_silence(silence)
        with serving(str(graph)) as served, chromium(microphone=silence) as browser:
            page = browser.pages[0]
            page.add_init_script("window.stampCamera = true;")
            live(page, served, "restyle-clock")
            until(page, "document.getElementById('remote').videoWidth >= 640", 60)
            page.evaluate(READ_STAMPS, 8)  # the model warms up, the encoders settle
            read = page.evaluate(READ_STAMPS, seconds)
    ages = sorted(read["ages"])
    if not ages:
        return head | {"skipped": f"no readable clock came back: {read['torn']} torn"}
    return head | {
        "fps": round((len(ages) + read["torn"]) / seconds, 1),
        "read": len(ages),
        "glass_to_glass_ms_p50": round(ages[len(ages) // 2], 1),
        "glass_to_glass_ms_p99": round(ages[int(len(ages) * 0.99)], 1),
    }
