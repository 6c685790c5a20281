"""Speech and the spoken conversation, measured.

    make bench AREA=voice [ARGS=--full]    (--full: round trips of every voice)

Prints JSON lines, the summary last. Times are wall ms unless the name says otherwise.

first_audio_ms: the first delta of a reply → its first frame out of `tts.stream`; the deltas come at once, word by word.
rtf: CPU seconds for a second of speech. Engine "endpoint" is a server in the same process that answers at once: our side's cost.
wer: Harvard sentences through the voice and PocketSphinx with its large model: 20, with --full 72 and three seeds.
pocket_*: pocket-tts at its true shape, with random weights where the true ones were not pulled.
gap_free: share of replies of sessions that all speak at once, on a pool that is kept full, without a gap at the sink.
barge_in_to_silence_ms: the onset told by the VAD → silence; at the sink on the virtual clock, at the ear of an aiortc
client over loopback WebRTC.
turn_end_to_audio_ms: the VAD's end of a spoken command → the answer's first sound; `voice_end_…`: the last loud sample.
false_interruption_resume_ms: the VAD's end of a cough or "mm-hm" → the reply sounds again.
spoken_context_exact: share of replies of which the model is told exactly the words whose last sample was heard.
flow_*: the neural voice's streaming against one pass, and what a chunk costs late in a minute against early.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1]))

import av
import numpy as np
from aiohttp import web
from aiortc.mediastreams import MediaStreamTrack
from penstock.models import voices
from penstock.models.voice import NoVoice, Voice
from penstock.pipeline import registry
from penstock.pipeline.clock import MS, SECOND, MonotonicClock
from penstock.pipeline.compiler import compile_text
from penstock.pipeline.frame import AudioFrame, EventFrame, Frame, TokenFrame
from penstock.pipeline.pools import Pools
from penstock.pipeline.stage import Out, Outputs, Ports, Stage
from penstock.stages.tts import StreamTts
from penstock.transport.audio_out import AUDIO_RATE, AudioOut
from report import line, note, percentile
from voice_flow import flow
from voice_pocket import pocket
from voice_turns import command, conversation
from voice_words import FEW, SENTENCES, words

from tests.client import Client, serving

ENGINES = ("flite:rms", "flite:slt", "flite:awb", "flite:kal16", "espeak", "flow")
REPLIES = (
    "I see a picture that is neither dark nor bright, mostly blue, with a lot of movement.",
    "It is ten thirty in the morning.",
    "Sorry, I did not understand. Ask what time is it, or name a style such as pencil sketch.",
    "The weather in the mountains will stay sunny and warm for the rest of the week",
    "Well, that depends on how many people you want to invite to the party on Saturday.",
)


class Bench:
    """Just enough of a session for one stage, with a real pool."""

    session, node, epoch, realtime = "bench", "voice", 0, True
    clock = MonotonicClock()
    connected: frozenset[str] = frozenset({"text", "audio"})

    def __init__(self, pools: Pools) -> None:
        self._pools = pools

    def pool(self, name: str | None = None) -> Any:
        return self._pools.get(name or "main")

    def emit(self, event: str, **fields: object) -> None:
        pass


class First:
    """Outputs that note when the first frame came."""

    epoch, source = 0, ""

    def __init__(self) -> None:
        self.at = 0.0
        self.seconds = 0.0

    def post(self, port: str, frame: Frame) -> None:
        assert isinstance(frame, AudioFrame)
        self.at = self.at or time.perf_counter()
        self.seconds += len(frame.pcm) / frame.rate_hz

    async def send(self, port: str, frame: Frame) -> None:
        self.post(port, frame)


def known(name: str) -> Voice | None:
    try:
        return voices.load(name)
    except NoVoice as e:
        line(part="engine", engine=name, first_audio_ms_p50=None, reason=str(e))
        return None


async def endpoint() -> dict[str, float]:
    """What our side of a speech endpoint adds: one on loopback that answers at once, 60 ms of sound a character."""

    async def speak(request: web.Request) -> web.StreamResponse:
        text = (await request.json())["input"]
        response = web.StreamResponse(headers={"Content-Type": "audio/pcm"})
        await response.prepare(request)
        for _ in range(len(text)):
            await response.write(bytes(24 * 2 * 60))
        return response

    app = web.Application()
    app.router.add_post("/v1/audio/speech", speak)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        return await engine("endpoint", {"endpoint": {"base_url": url, "fallback": False}})
    finally:
        await runner.cleanup()


async def engine(name: str, options: dict[str, Any], rounds: int = 4) -> dict[str, float]:
    pools = Pools()
    stage = StreamTts(StreamTts.Options.model_validate(options))
    stage.ctx = Bench(pools)  # type: ignore[assignment]
    await stage.setup()
    waits: list[float] = []
    seconds = 0.0
    utterance, cpu = 0, time.process_time()
    for _ in range(rounds):
        for text in REPLIES:
            utterance += 1
            out, begun = First(), time.perf_counter()
            words = text.split(" ")
            for i, word in enumerate(words):
                end = i == len(words) - 1
                await stage.process(
                    "text", TokenFrame(pts=0, text=f"{word} ", utterance=utterance, end=end), out
                )
            waits.append((out.at - begun) * 1000)
            seconds += out.seconds
    rtf = (time.process_time() - cpu) / seconds
    await stage.close()
    pools.close()
    figures = {
        "first_audio_ms_p50": round(percentile(waits, 0.5), 1),
        "first_audio_ms_p99": round(percentile(waits, 0.99), 1),
        "rtf": round(rtf, 4),
    }
    line(part="engine", engine=name, **figures)
    return figures


# ---------------------------------------------------------------- a full pool


async def full_pool(voice: str, sessions: int = 4) -> float:
    """Share of replies without a gap, while the pool's threads never rest."""
    pools, text = Pools(), " ".join(REPLIES[:3])
    busy = True

    weights = np.ones((384, 384), np.float32)

    def work() -> None:  # as models do: long calls that leave the interpreter to others
        end = time.thread_time() + 0.01
        while time.thread_time() < end:
            weights @ weights

    async def fill() -> None:
        while busy:
            await pools.get("main").call(work)

    async def one(number: int) -> float:
        stage = StreamTts(StreamTts.Options.model_validate({"voice": voice}))
        stage.ctx = Bench(pools)  # type: ignore[assignment]
        await stage.setup()
        track = AudioOut(MonotonicClock(), ahead=260 * MS)  # its own 60 ms and those of the edge before it
        written = 0
        steps: list[int] = []

        class Sink(First):
            async def send(self, port: str, frame: Frame) -> None:
                nonlocal written
                assert isinstance(frame, AudioFrame)
                written += len(frame.pcm) * AUDIO_RATE // frame.rate_hz
                await track.write(frame)

        async def pull() -> None:
            while True:
                before = track.played
                await track.pull()
                steps.append(track.played - before)

        pulling = asyncio.create_task(pull())
        frame = TokenFrame(pts=0, text=text, utterance=number)
        await stage.process("text", frame, Sink())
        while track.played < written - AUDIO_RATE // 100:  # noqa: ASYNC110 - a benchmark
            await asyncio.sleep(0.02)
        pulling.cancel()
        sounding = np.flatnonzero(steps)
        missing = (sounding[-1] - sounding[0] + 1) * 20 - written * 1000 / AUDIO_RATE
        return max(0.0, float(missing))

    fillers = [asyncio.create_task(fill()) for _ in range(4)]
    gaps = await asyncio.gather(*(one(n) for n in range(sessions)))
    busy = False
    await asyncio.gather(*fillers)
    pools.close()
    line(part="full_pool", engine=voice, sessions=sessions, gap_ms=[round(g) for g in gaps])
    return round(sum(g < 40 for g in gaps) / len(gaps), 2)


# ---------------------------------------------------------------- at the client's ear

EAR = """
penstock: 1
graph: ear
nodes:
  ears:  {use: bench.ears}
  turn:  {use: turn.manager, in: {speech: ears.speech, heard: ears.words, partial: ears.partial}}
  voice: {use: tts.stream, in: ears.say, scope: reply}
  out:   {use: webrtc.out, in: {audio: voice.audio}}
cancel: {reply: {on: turn.barge_in, within: 120ms}}
"""
STORY = " ".join(REPLIES * 3)


class BenchEars(Stage):
    """Has the agent tell a story, and interrupts it again and again."""

    ports = Ports(
        outputs={
            "speech": Out(EventFrame, "token"),
            "words": Out(TokenFrame, "token"),
            "partial": Out(TokenFrame, "token"),
            "say": Out(TokenFrame, "token"),
        }
    )
    onsets: list[float] = []  # noqa: RUF012 - read by the benchmark
    rounds = 8

    async def run(self, out: Outputs) -> None:
        clock = self.ctx.clock
        for n in range(self.rounds):
            epoch = n  # each barge-in begins another
            out.post("say", TokenFrame(pts=clock.now(), text=STORY, utterance=n + 1, epoch=epoch))
            await clock.sleep(2200 * MS + n * 37 * MS)
            out.post("speech", EventFrame(pts=clock.now(), name="speech_start"))
            self.onsets.append(time.perf_counter())
            await clock.sleep(300 * MS)
            out.post("partial", TokenFrame(pts=clock.now(), text="stop"))
            await clock.sleep(400 * MS)
            out.post("speech", EventFrame(pts=clock.now(), name="speech_end"))
            await clock.sleep(100 * MS)
        await clock.sleep(SECOND)


async def at_the_ear() -> dict[str, float]:
    """Through a real server, SRTP and aiortc's jitter buffer."""
    registry.EXTRA["bench.ears"] = BenchEars
    plan = compile_text(EAR, "ear.yaml")
    BenchEars.onsets.clear()
    heard: list[tuple[float, float]] = []  # (when, loudest sample)
    async with serving({"ear": plan}) as server:
        client = Client()
        client.pc.addTransceiver("audio", "recvonly")
        await client.connect(server.url, "ear")

        async def listen(track: MediaStreamTrack) -> None:
            while True:
                frame = await track.recv()
                assert isinstance(frame, av.AudioFrame)
                heard.append((time.perf_counter(), float(np.abs(frame.to_ndarray()).max())))

        listening = asyncio.create_task(listen(client.tracks["audio"]))
        await asyncio.sleep(BenchEars.rounds * 3.3 + 1.5)
        listening.cancel()
        await client.pc.close()
    waits: list[float] = []
    for onset in BenchEars.onsets:
        loud = [at for at, peak in heard if onset - 0.5 < at < onset + 0.6 and peak > 200]
        if loud:
            waits.append(max(0.0, (max(loud) - onset) * 1000 + 20))
    line(part="ear", rounds=len(waits), ms=[round(w) for w in waits])
    if not waits:
        return {}
    return {"p50": round(percentile(waits, 0.5), 1), "p99": round(percentile(waits, 0.99), 1)}


def main() -> None:
    options = argparse.ArgumentParser(description="Speech and the spoken conversation, measured.")
    options.add_argument(
        "--full", action="store_true", help="round trips of every voice, 72 sentences, three seeds"
    )
    options.add_argument("--conversation", type=float, default=3600, help="simulated seconds")
    options.add_argument("--skip", default="", help="parts to leave out: wer,pool,ear,command,conversation")
    args = options.parse_args()
    skip = set(args.skip.split(","))
    # what is timed first, alone; what counts CPU time or is on the virtual clock then, on both cores
    engines = {n: asyncio.run(engine(n, {"voice": n})) for n in ENGINES if known(n) is not None}
    engines["endpoint"] = asyncio.run(endpoint())
    summary: dict[str, Any] = {"area": "voice", "engines": engines}
    if "pool" not in skip:
        summary["gap_free"] = asyncio.run(full_pool("auto"))
        summary["gap_free_flow"] = asyncio.run(full_pool("flow"))
    if "ear" not in skip:
        summary["barge_in_to_silence_ear_ms"] = asyncio.run(at_the_ear())
    if "command" not in skip:
        summary |= asyncio.run(command(known("flite:slt") or voices.load("auto")))
    with ProcessPoolExecutor(1, get_context("spawn")) as other:
        round_trips = None
        if "wer" not in skip:
            names = ENGINES if args.full else ("flite:rms", "flow", "espeak")
            sentences = SENTENCES if args.full else SENTENCES[:FEW]
            round_trips = other.submit(words, names, sentences, range(3 if args.full else 1))
        if "conversation" not in skip:
            note("an hour of conversation on the virtual clock takes about a minute")
            summary |= conversation(args.conversation)
        summary |= flow() | pocket()
        if round_trips is not None:
            summary |= round_trips.result()
    line(**summary)


if __name__ == "__main__":
    main()
