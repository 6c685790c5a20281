"""The live ends of a graph: `webrtc.in` gives what a peer sends, `webrtc.out` sends it what the graph makes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from typing import Annotated, Any, Literal

import numpy as np
from aiortc.mediastreams import MediaStreamError
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from ..pipeline.clock import MS, SECOND
from ..pipeline.frame import AudioFrame, EventFrame, Frame, Gap, PixelFormat, TokenFrame, VideoFrame
from ..pipeline.stage import Control, Flush, In, Out, Outputs, Ports, Stage, StageError
from ..pipeline.units import Audio, AudioFormat, Duration, Video, parse_rate
from .audio_out import AUDIO_RATE
from .crop_track import Composer, Part, PartFit
from .datachannel import ControlChannel
from .fit import AudioFit
from .ingress import IngressTrack, Mailbox
from .line import Line
from .peer import Peer

log = logging.getLogger(__name__)

_NO_PEER = "{} is the live end of a browser session; `penstock serve` gives it one, `penstock run` needs {}"


class UplinkOptions(BaseModel):
    """A client's share of what all may send: priority, weight of its answers; least and most, bits/s of its
    pictures; deadline, within which its largest picture must have come."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    priority: float = Field(default=1.0, gt=0, le=100)
    least: Annotated[int, BeforeValidator(parse_rate)] = 12_000
    most: Annotated[int, BeforeValidator(parse_rate)] = Field(default=4_000_000, validate_default=True)
    deadline: Duration = Field(default=SECOND, ge=100 * MS)

    @field_validator("most")  # of one field, so that it is told beside the faults of others
    @classmethod
    def _check(cls, most: int, info: ValidationInfo) -> int:
        if (least := info.data.get("least", 0)) > most:
            raise ValueError(f"least {least} is more than most {most}")
        return most


class WebRtcInOptions(BaseModel):
    """video: the picture is scaled to fit inside, aspect kept, never faster than its fps; left out: as
    captured. audio: 48k/mono/20ms when left out. stale: a picture older than this dies at the next edge. uplink: what
    its client may send."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    video: Video | None = None
    audio: Audio | None = None
    format: PixelFormat = "rgb24"
    stale: Duration = Field(default=500 * MS, gt=0)
    uplink: UplinkOptions = UplinkOptions()


class WebRtcIn(Stage):
    """What the peer sends: pictures, sound, the chat lines of its data channel, and stills that were asked for."""

    ports = Ports(
        outputs={
            "video": Out(VideoFrame, "live"),
            "audio": Out(AudioFrame, "live"),
            "text": Out(TokenFrame, "token"),
            "still": Out(VideoFrame, "token"),
        }
    )
    Options = WebRtcInOptions

    def __init__(
        self,
        options: BaseModel | None = None,
        params: BaseModel | None = None,
        line: Line | None = None,
        stills: Mailbox | None = None,
    ) -> None:
        """stills: cut out of the sender's last seconds, for who emitted `fetch`."""
        super().__init__(options, params)
        self.line = line
        self.stills = stills
        self._heard = 0  # pts where the sound ended

    async def setup(self) -> None:
        if self.line is None:
            raise StageError(_NO_PEER.format("webrtc.in", "--in FILE"))
        options: WebRtcInOptions = self.options
        self.line.fit("video", lambda counts: PartFit(options.video, options.format, counts))
        self.line.fit("crop", lambda counts: PartFit(options.video, options.format, counts, only_crops=True))
        self.line.fit("audio", lambda _: AudioFit(options.audio or AudioFormat(48_000)))

    async def run(self, out: Outputs) -> None:
        """Until no peer will come any more."""
        assert self.line is not None
        async with asyncio.TaskGroup() as group:
            group.create_task(self._text(self.line, out), name=f"{self.ctx.session}/{self.ctx.node}.text")
            stills = group.create_task(self._stills(out), name=f"{self.ctx.session}/{self.ctx.node}.still")
            peer: Peer | None = None
            while (peer := await self.line.next(peer)) is not None:
                await self._media(peer.tracks, out)
            stills.cancel()

    async def _media(self, tracks: Mapping[str, IngressTrack], out: Outputs) -> None:
        """What one peer sends, until it is gone or has ended its tracks."""
        options: WebRtcInOptions = self.options
        composer = Composer(options.format, options.stale)
        async with asyncio.TaskGroup() as group:
            for kind, track in tracks.items():
                reader = self._audio(track, out) if kind == "audio" else self._pictures(track, composer, out)
                group.create_task(_until_end(reader), name=f"{self.ctx.session}/{self.ctx.node}.{kind}")

    async def _pictures(self, track: IngressTrack, composer: Composer, out: Outputs) -> None:
        """Of the camera's track, or of its crop's: both end in one."""
        while True:
            part: Part = _item(await track.recv())
            frame = composer(part, track.capture.at(part.at))
            if frame is not None:
                await out.send("video", frame)

    async def _audio(self, track: IngressTrack, out: Outputs) -> None:
        options: WebRtcInOptions = self.options
        rate_hz = (options.audio or AudioFormat(48_000)).rate_hz
        expected: int | None = None  # media time
        while True:
            for media, pcm in _item(await track.recv()):
                length = len(pcm) * SECOND // rate_hz
                pts = track.capture.at(media)
                hole = media - expected > length // 2 if expected is not None else self._heard > 0
                if hole and pts > self._heard:
                    await out.send("audio", Gap(pts=self._heard, until=pts, reason="network"))
                expected, self._heard = media + length, pts + length
                await out.send("audio", AudioFrame(pts=pts, pcm=pcm, rate_hz=rate_hz))

    async def _stills(self, out: Outputs) -> None:
        while self.stills is not None and (frame := await self.stills.get()) is not None:
            await out.send("still", frame)

    async def _text(self, line: Line, out: Outputs) -> None:
        utterance = 0
        while (text := await line.chat.get()) is not None:
            utterance += 1
            await out.send("text", TokenFrame(pts=self.ctx.clock.now(), text=text, utterance=utterance))


def _item(received: Any) -> Any:
    """What the track's transform made: `recv` is typed for aiortc's own frames."""
    return received


async def _until_end(reader: Awaitable[None]) -> None:
    try:
        await reader
    except MediaStreamError:
        return  # the far end stopped this track; the others go on


def text_kind(source: str) -> Literal["partial", "commit", "delta"]:
    """How the page shows the text of a port "node.port" (docs/protocol.md)."""
    port = source.rpartition(".")[2]
    return port if port in ("partial", "commit") else "delta"  # type: ignore[return-value]


class WebRtcOutOptions(BaseModel):
    """ahead: how much sound may wait at the sender; more of it lets speech survive a busy machine, less
    makes a barge-in quicker."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ahead: Duration = Field(default=60 * MS, ge=20 * MS, le=SECOND)


class WebRtcOut(Stage):
    """Sends to the peer: the newest picture, sound at real-time pace, text on its data channel.

    What the peer did not ask for (no such track, no channel) is dropped here; so are pictures while it is
    away. Events need no edge: the session's listeners put every event of the graph on the channel, also those
    of this port.
    """

    ports = Ports(
        inputs={
            "video": In(VideoFrame, required=False),
            "audio": In(AudioFrame, required=False),
            "text": In((TokenFrame, EventFrame), required=False, many=True),
        }
    )
    Options = WebRtcOutOptions

    def __init__(
        self,
        options: BaseModel | None = None,
        params: BaseModel | None = None,
        line: Line | None = None,
        channel: ControlChannel | None = None,
        live_audio: bool = False,
    ) -> None:
        """live_audio: the sound is a live one passed through, which may be shortened but not late."""
        super().__init__(options, params)
        self.line = line
        self.channel = channel
        self.live_audio = live_audio

    async def setup(self) -> None:
        if self.line is None:
            raise StageError(_NO_PEER.format("webrtc.out", "--out FILE"))
        hears = not self.live_audio and self.line.audio_out is not None
        self.line.set_audio(self.options.ahead, self.live_audio, self._played if hears else None)
        if hears:
            self.ctx.playback.attach(AUDIO_RATE, self.line.hold)

    def _played(
        self, at: int, samples: int, pcm: NDArray[np.int16] | None, waiting: int, said: list[tuple[int, str]]
    ) -> None:
        """20 ms have left: the session learns what its listener hears, the page what words were said."""
        self.ctx.playback.step(at, samples, pcm, waiting, said)
        for utterance, text in said:
            self.ctx.emit("played", utterance=utterance, text=text)

    def process(self, port: str, frame: Frame, out: Outputs) -> Awaitable[None] | None:
        assert self.line is not None
        if isinstance(frame, VideoFrame):
            self.line.show(frame)
        elif isinstance(frame, AudioFrame):
            if self.line.audio_out is not None:
                return self.line.audio_out.write(frame)
        elif isinstance(frame, TokenFrame) and self.channel is not None:
            self.channel.text(out.source, text_kind(out.source), frame)
        return None

    async def control(self, message: Control) -> None:
        if isinstance(message, Flush):
            assert self.line is not None
            if self.line.audio_out is not None:
                self.line.audio_out.flush(message.epoch)
        else:
            await super().control(message)
