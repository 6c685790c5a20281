"""A real Chromium and an echo server of aiortc or of Penstock: how fast does its uplink ramp, how old is what it shows?

python benchmarks/transport_uplink.py {aiortc,penstock}     # the server alone, as `with_chromium` starts it
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from aiohttp import web

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

PAGE = """<!doctype html><title>uplink</title><script>
const wait = s => new Promise(done => setTimeout(done, s * 1000));
const connect = async (media, shown) => {
    const pc = new RTCPeerConnection();
    for (const track of media.getTracks()) pc.addTrack(track, media);
    pc.ontrack = e => { if (e.track.kind === "video") shown.srcObject = new MediaStream([e.track]); };
    await pc.setLocalDescription();
    await new Promise(done => pc.onicegatheringstatechange = () => pc.iceGatheringState === "complete" && done());
    const answer = await fetch("/offer", {method: "POST", body: pc.localDescription.sdp});
    await pc.setRemoteDescription({type: "answer", sdp: await answer.text()});
    while (pc.connectionState !== "connected") await wait(.02);
    return pc;
};
const element = () => Object.assign(document.createElement("video"), {muted: true, autoplay: true, playsInline: true});
// a picture that costs more than any rate here: soft noise that moves
const UPLINK = async () => {
    const canvas = Object.assign(document.createElement("canvas"), {width: 1280, height: 720});
    const grain = Object.assign(document.createElement("canvas"), {width: 340, height: 190});
    const pixels = grain.getContext("2d").createImageData(340, 190);
    for (let k = 0; k < pixels.data.length; k++) pixels.data[k] = k % 4 === 3 ? 255 : Math.random() * 255;
    grain.getContext("2d").putImageData(pixels, 0, 0);
    const pen = canvas.getContext("2d");
    let n = 0;
    const timer = setInterval(() => { n++; pen.drawImage(grain, n * 3 % 20, n % 10, 320, 180, 0, 0, 1280, 720); }, 1000 / 30);
    const media = canvas.captureStream(30);
    const sound = await navigator.mediaDevices.getUserMedia({audio: true});
    media.addTrack(sound.getAudioTracks()[0]);
    const pc = await connect(media, element());
    const sent = async () => {
        const found = {};
        for (const s of (await pc.getStats()).values()) {
            if (s.type === "outbound-rtp" && s.kind === "video")
                Object.assign(found, {bytes: s.bytesSent, width: s.frameWidth, fps: s.framesPerSecond, limit: s.qualityLimitationReason,
                    uplink_target_kbps: s.targetBitrate / 1000});
            if (s.type === "candidate-pair" && s.nominated) found.uplink_available_kbps = s.availableOutgoingBitrate / 1000;
        }
        return found;
    };
    await wait(8);
    const before = await sent();
    await wait(2);
    const after = await sent();
    clearInterval(timer);
    pc.close();
    return {...after, uplink_kbps_10s: (after.bytes - before.bytes) * 8 / 2000};
};
// 16 bits of the time drawn as blocks of 40 pixels, read back when the echo is shown
const GLASS = async () => {
    const canvas = Object.assign(document.createElement("canvas"), {width: 640, height: 480});
    const pen = canvas.getContext("2d");
    const draw = () => {
        const now = Math.round(performance.now()) & 65535;
        pen.fillStyle = "#606060"; pen.fillRect(0, 40, 640, 440);
        pen.fillStyle = "#a04020"; pen.fillRect(now % 600, 200, 40, 100);
        for (let k = 0; k < 16; k++) { pen.fillStyle = now >> k & 1 ? "#fff" : "#000"; pen.fillRect(k * 40, 0, 40, 40); }
    };
    draw();
    const timer = setInterval(draw, 1000 / 30);
    const shown = element();
    document.body.append(shown);
    const pc = await connect(canvas.captureStream(30), shown);
    const ages = [];
    const eye = new OffscreenCanvas(640, 40).getContext("2d", {willReadFrequently: true});
    const look = () => {
        eye.drawImage(shown, 0, 0, shown.videoWidth, shown.videoHeight / 12, 0, 0, 640, 40);
        const pixels = eye.getImageData(0, 20, 640, 1).data;
        let stamp = 0;
        for (let k = 0; k < 16; k++) if (pixels[(k * 40 + 20) * 4] > 128) stamp |= 1 << k;
        ages.push((Math.round(performance.now()) - stamp) & 65535);
        shown.requestVideoFrameCallback(look);
    };
    shown.requestVideoFrameCallback(look);
    await wait(2);
    ages.length = 0;
    await wait(6);
    clearInterval(timer);
    pc.close();
    ages.sort((a, b) => a - b);
    const at = q => ages.length ? ages[Math.min(ages.length - 1, Math.floor(q * ages.length))] : null;
    return {glass_ms_p50: at(.5), glass_ms_p99: at(.99), glass_fps: ages.length / 6};
};
</script><body></body>"""


async def _serve(variant: str) -> None:
    from transport_server import serve, use_loopback

    use_loopback()
    closers: list[Any] = []

    async def page(_: web.Request) -> web.Response:
        return web.Response(text=PAGE, content_type="text/html")

    async def offer(request: web.Request) -> web.Response:
        answer, close, _ = await serve(variant, await request.text())
        closers.append(close)
        return web.Response(text=answer)

    app = web.Application()
    app.router.add_get("/", page)
    app.router.add_post("/offer", offer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(json.dumps({"url": f"http://127.0.0.1:{runner.addresses[0][1]}/"}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # until the parent closes it
    for close in closers:
        await close()
    await runner.cleanup()


def with_chromium(variant: str) -> dict[str, Any]:
    """Mean rate of the video sent 8 to 10 s after connecting, kb/s, and glass to glass; or why not."""
    from harness.chromium import chromium, missing

    if why := missing():
        return {"uplink_kbps_10s": None, "glass_ms_p50": None, "reason": why}
    command = [sys.executable, __file__, variant]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            url = json.loads(server.stdout.readline())["url"]
            found: dict[str, Any] = {}
            with chromium() as browser:
                page = browser.pages[0]
                for plan in ("UPLINK", "GLASS"):
                    page.goto(url)
                    found |= page.evaluate(f"{plan}()")
        finally:
            server.stdin.close()
    return {key: round(value, 1) if isinstance(value, float) else value for key, value in found.items()}


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
