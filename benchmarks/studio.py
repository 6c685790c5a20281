"""The studio as a person meets it: a real Chromium with fake devices against the real server.

    make bench AREA=studio

Prints JSON lines, the summary last. Times are in ms unless the name says otherwise.

connect_ms: Start pressed → the data channel is open and hello is here (median; models loaded).
caption_ms: the spoken command's last loud sample → its committed caption on the page (median).
reply_ms: the same → the first non-silent remote sample (median).
glass_to_glass_ms: a 16-bit clock drawn into the camera picture → read back from the shown picture.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from harness.chromium import chromium, missing, render_camera, render_silence, speak, until
from harness.serve import Served, serving

if TYPE_CHECKING:
    from playwright.sync_api import Page

COMMAND = "neon"
PROBE = """
const made = RTCPeerConnection.prototype.createDataChannel;
window.marks = {};
RTCPeerConnection.prototype.createDataChannel = function (...args) {
    const channel = made.apply(this, args);
    channel.addEventListener('message', ({data}) => {
        if (typeof data !== 'string') return;
        const message = JSON.parse(data);
        const now = performance.now();
        if (message.type === 'hello') window.marks.hello = now;
    });
    return channel;
};
document.addEventListener('click', ({target}) => {
    if (target.id === 'start') window.marks.click = performance.now();
}, true);

const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
window.clockTrack = null;
navigator.mediaDevices.getUserMedia = async (wish) => {
    const stream = await ask(wish);
    window.mic = stream.getAudioTracks()[0] ?? window.mic;
    if (!window.stampCamera || !wish.video) return stream;
    const canvas = Object.assign(document.createElement('canvas'), {width: 640, height: 480});
    const pen = canvas.getContext('2d');
    const [track] = canvas.captureStream(0).getVideoTracks();
    setInterval(() => {
        pen.fillStyle = '#678';
        pen.fillRect(0, 0, 640, 480);
        pen.fillStyle = '#b96';
        pen.fillRect((performance.now() / 6) % 560, 200, 80, 80);
        const stamp = Math.round(performance.now()) & 0xffff;
        for (let bit = 0; bit < 16; bit++) {
            const one = (stamp >> bit) & 1;
            pen.fillStyle = one ? '#fff' : '#000';
            pen.fillRect(bit * 40, 0, 40, 40);
            pen.fillStyle = one ? '#000' : '#fff';  // its complement: a torn or blurred stamp is not counted
            pen.fillRect(bit * 40, 40, 40, 40);
        }
        track.requestFrame();
    }, 1000 / 30);
    return new MediaStream([track, ...stream.getAudioTracks()]);
};
"""

READ_STAMPS = """(seconds) => new Promise((resolve) => {
    const video = document.getElementById('remote');
    const pen = new OffscreenCanvas(640, 80).getContext('2d', {willReadFrequently: true});
    const ages = [];
    let torn = 0;
    const end = performance.now() + seconds * 1000;
    const read = () => {
        const now = performance.now();
        pen.drawImage(video, 0, 0, video.videoWidth, video.videoHeight / 6, 0, 0, 640, 80);
        const {data} = pen.getImageData(0, 0, 640, 80);
        let stamp = 0, sound = true;
        for (let bit = 0; bit < 16; bit++) {
            const at = (y) => data[4 * (640 * y + bit * 40 + 20)] > 127;
            if (at(20) === at(60)) sound = false;
            if (at(20)) stamp |= 1 << bit;
        }
        if (sound) ages.push((now - stamp + 65536 * 2) % 65536);
        else torn++;
        if (now < end) video.requestVideoFrameCallback(read);
        else resolve({ages, torn});
    };
    video.requestVideoFrameCallback(read);
})"""

# one spoken command: when its voice ended, when its caption was committed, when the reply was first heard
TIMES = """(limit) => new Promise((resolve) => {
    const context = new AudioContext();
    const tap = (track) => {
        const analyser = Object.assign(context.createAnalyser(), {fftSize: 512});
        context.createMediaStreamSource(new MediaStream([track])).connect(analyser);
        const samples = new Float32Array(512);
        return () => {
            analyser.getFloatTimeDomainData(samples);
            return samples.reduce((top, x) => Math.max(top, Math.abs(x)), 0);
        };
    };
    const mine = tap(window.mic);
    const theirs = tap(document.getElementById('voice').srcObject.getAudioTracks()[0]);
    const rounds = [];
    let voice = 0, caption = 0, quiet = performance.now();
    new MutationObserver(() => {
        if (document.getElementById('committed').textContent) caption = performance.now();
    }).observe(document.getElementById('committed'), {childList: true, characterData: true, subtree: true});
    const end = performance.now() + limit;
    const timer = setInterval(() => {
        const now = performance.now();
        if (mine() > 0.02) { voice = now; caption = 0; }
        if (theirs() > 0.01) {
            if (now - quiet > 400 && caption) rounds.push({caption: caption - voice, reply: now - voice});
            quiet = now;
            caption = 0;
        }
        if (now > end) { clearInterval(timer); resolve(rounds); }
    }, 5);
})"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seconds", type=float, default=10.0, help="of stamped picture, per graph")
    options.add_argument("--rounds", type=int, default=6, help="spoken commands")
    options.add_argument("--connects", type=int, default=5)
    args = options.parse_args()
    if lacking := missing(voice=True):
        sys.exit(f"this benchmark {lacking}")

    with tempfile.TemporaryDirectory() as folder, serving("studio", "loopback") as served:
        camera, voice, silence = (Path(folder, name) for name in ("cam.y4m", "mic.wav", "silence.wav"))
        render_silence(silence)
        render_camera(camera)
        speak(COMMAND, voice, lead_s=2.0, tail_s=5.0)
        connects = [connect(served, camera, voice) for _ in range(args.connects)]
        say("connect", first_ms=round(connects[0]), rest_ms=[round(c) for c in connects[1:]])
        rounds = converse(served, camera, voice, args.rounds)
        say("converse", rounds=rounds)
        ages = {graph: glass(served, graph, silence, args.seconds) for graph in ("loopback", "studio")}
        rss_mb = resident_mb(served.process.pid)
    summary = {
        "area": "studio",
        "connect_ms": round(statistics.median(connects[1:] or connects)),
        "caption_ms": median(rounds, "caption"),
        "reply_ms": median(rounds, "reply"),
        "glass_to_glass_ms_p50": ages["studio"][0],
        "p99": ages["studio"][1],
        "loopback_ms_p50": ages["loopback"][0],
        "loopback_p99": ages["loopback"][1],
        "rss_mb": rss_mb,
        "import_s": import_s(),
    }
    print(json.dumps(summary), flush=True)


def say(what: str, **figures: Any) -> None:
    print(json.dumps({"measured": what, **figures}), flush=True)


def median(rounds: list[dict[str, float]], key: str) -> int | None:
    return round(statistics.median(r[key] for r in rounds)) if rounds else None


def live(page: Page, served: Served, graph: str) -> None:
    page.add_init_script(PROBE)
    page.goto(served.url)
    page.wait_for_selector("#graph option", state="attached")
    page.select_option("#graph", graph)
    page.click("#start")
    page.wait_for_selector("body[data-state=live]", timeout=60_000)


def connect(served: Served, camera: Path, voice: Path) -> float:
    with chromium(camera=camera, microphone=voice) as browser:
        page = browser.pages[0]
        live(page, served, "studio")
        until(page, "window.marks.hello > 0")
        return page.evaluate("window.marks.hello - window.marks.click")


def converse(served: Served, camera: Path, voice: Path, rounds: int) -> list[dict[str, float]]:
    with chromium(camera=camera, microphone=voice) as browser:
        page = browser.pages[0]
        live(page, served, "studio")
        return page.evaluate(TIMES, rounds * 7_600)  # the length of the microphone's loop, about


def glass(served: Served, graph: str, silence: Path, seconds: float) -> tuple[float, float]:
    with chromium(microphone=silence) as browser:
        page = browser.pages[0]
        page.add_init_script("window.stampCamera = true;")
        live(page, served, graph)
        until(page, "document.getElementById('remote').videoWidth >= 640", 30)
        page.evaluate(READ_STAMPS, 3)  # the encoders settle
        read = page.evaluate(READ_STAMPS, seconds)
        ages = sorted(read["ages"])
        if not ages:
            sys.exit(f"no readable stamp came back through {graph}: {read['torn']} torn")
        p50, p99 = ages[len(ages) // 2], ages[int(len(ages) * 0.99)]
        say(
            "glass_to_glass",
            graph=graph,
            frames=len(ages),
            torn=read["torn"],
            fps=len(ages) / seconds,
            p50=p50,
            p99=p99,
        )
        return round(p50, 1), round(p99, 1)


def resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return round(int(status.split("VmRSS:")[1].split()[0]) / 1024, 1)


def import_s() -> float:
    """Wall time of a fresh process that imports the server and every stage of the studio, less a bare one's."""

    def run(code: str) -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - started

    load = (
        "import penstock.pipeline.cli, penstock.transport.server\n"
        "from penstock.pipeline import library\n"
        "library.load_all(['studio'])"
    )
    bare = min(run("pass") for _ in range(3))
    return round(statistics.median(run(load) - bare for _ in range(3)), 2)


if __name__ == "__main__":
    main()
