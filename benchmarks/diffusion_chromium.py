"""The graph `restyle` as a person meets it: a real Chromium, the real server, a clock in the picture.

Drawn in `noir`, whose black and white leave the clock readable and the blue background gray: so a picture that only
passed through, as they do where the pool is short, is not counted as drawn.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.request import urlopen

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

GRAPH = """penstock: 1
graph: restyle-clock
slo: {{glass_to_glass: 400ms}}
nodes:
  cam:     {{use: webrtc.in, video: 640x480@30, audio: 48k/mono/20ms}}
  restyle: {{use: diffusion.stream, in: cam.video, side: {side}, budget: 150ms, params: {{prompt: film noir, skip_still: false}}}}
  out:     {{use: webrtc.out, in: {{video: restyle.video, audio: cam.audio}}}}
"""

READ = """(seconds) => new Promise((resolve) => {
    const video = document.getElementById('remote');
    const pen = new OffscreenCanvas(640, 480).getContext('2d', {willReadFrequently: true});
    const ages = [];
    let torn = 0, passed = 0;
    const end = performance.now() + seconds * 1000;
    const read = () => {
        const now = performance.now();
        pen.drawImage(video, 0, 0, 640, 480);
        const {data} = pen.getImageData(0, 0, 640, 80);
        const [red, , blue] = pen.getImageData(20, 400, 1, 1).data;
        let stamp = 0, sound = true;
        for (let bit = 0; bit < 16; bit++) {
            const at = (y) => data[4 * (640 * y + bit * 40 + 20)] > 127;
            if (at(20) === at(60)) sound = false;
            if (at(20)) stamp |= 1 << bit;
        }
        if (blue - red > 16) passed++;
        else if (sound) ages.push((now - stamp + 65536 * 2) % 65536);
        else torn++;
        if (now < end) video.requestVideoFrameCallback(read);
        else resolve({ages, torn, passed});
    };
    video.requestVideoFrameCallback(read);
})"""


def rung(url: str) -> int:
    """How far down its ladder the stage of the only session stands."""
    with urlopen(f"{url}sessions") as answer:
        (session,) = json.load(answer)["sessions"]
    with urlopen(f"{url}sessions/{session['id']}/stats") as answer:
        return next(node["level"] for node in json.load(answer)["nodes"] if node["name"] == "restyle")


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
    from studio import live

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
            page.evaluate(READ, 8)  # the model warms up, the encoders settle
            rungs = [rung(served.url)]
            read = page.evaluate(READ, seconds)
            rungs.append(rung(served.url))
    ages = sorted(read["ages"])
    if not ages:
        why = f"{read['passed']} passed through, {read['torn']} torn"
        return head | {
            "fps": 0.0,
            "rungs": rungs,
            "reason": f"no drawn picture with a readable clock came back: {why}",
        }
    return head | {
        "rungs": rungs,  # how far down its ladder it stood, before and after; 7 is passthrough
        "passed_through_fps": round(read["passed"] / seconds, 1),
        "fps": round((len(ages) + read["torn"]) / seconds, 1),
        "read": len(ages),
        "glass_to_glass_ms_p50": round(ages[len(ages) // 2], 1),
        "glass_to_glass_ms_p99": round(ages[int(len(ages) * 0.99)], 1),
    }
