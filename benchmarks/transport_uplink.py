"""A real Chromium sends its fake camera into an echo server of aiortc or of Penstock: how fast does its uplink ramp?

python benchmarks/transport_uplink.py {aiortc,penstock}     # the server alone, as `uplink_kbps` starts it
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
const PLAN = async () => {
    const pc = new RTCPeerConnection();
    const media = await navigator.mediaDevices.getUserMedia({video: {width: 1280, height: 720, frameRate: 30}, audio: true});
    for (const track of media.getTracks()) pc.addTrack(track, media);
    await pc.setLocalDescription();
    await new Promise(done => pc.onicegatheringstatechange = () => pc.iceGatheringState === "complete" && done());
    const answer = await fetch("/offer", {method: "POST", body: pc.localDescription.sdp});
    await pc.setRemoteDescription({type: "answer", sdp: await answer.text()});
    await new Promise(done => { const look = () => pc.connectionState === "connected" ? done() : setTimeout(look, 20); look(); });
    const sent = async () => {
        for (const s of (await pc.getStats()).values())
            if (s.type === "outbound-rtp" && s.kind === "video") return {bytes: s.bytesSent, width: s.frameWidth, fps: s.framesPerSecond};
    };
    const wait = s => new Promise(done => setTimeout(done, s * 1000));
    await wait(8);
    const before = await sent();
    await wait(2);
    const after = await sent();
    return {kbps: (after.bytes - before.bytes) * 8 / 2000, width: after.width, fps: after.fps};
};
</script>"""


async def _serve(variant: str) -> None:
    from transport_echo import serve, use_loopback

    use_loopback()
    closers: list[Any] = []

    async def page(_: web.Request) -> web.Response:
        return web.Response(text=PAGE, content_type="text/html")

    async def offer(request: web.Request) -> web.Response:
        answer, close = await serve(variant, await request.text())
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


def uplink_kbps(variant: str) -> float | str:
    """Mean rate of the video sent 8 to 10 s after connecting, kb/s; or what is missing."""
    from harness.chromium import chromium, missing

    if why := missing():
        return why
    command = [sys.executable, __file__, variant]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            url = json.loads(server.stdout.readline())["url"]
            with chromium() as browser:
                page = browser.pages[0]
                page.goto(url)
                found = page.evaluate("PLAN()")
        finally:
            server.stdin.close()
    print(json.dumps({"measured": "uplink", "variant": variant} | found), flush=True)
    return round(found["kbps"], 1)


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
