"""A vision model behind an OpenAI-compatible endpoint, in the place of one that runs here.

No server keeps a bounded live session yet, so each question carries the newest pictures with it: a window that
is sent again every time. It can neither remember what left the window nor speak up by itself.

Source: OpenAI API reference, "Chat: image inputs"; vLLM, SGLang, llama.cpp's server and Ollama speak it.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import cv2
from pydantic import Field, field_validator

from ..models.scene_reporter import Answer
from ..pipeline.clock import MS, SECOND
from ..pipeline.frame import TokenFrame, VideoFrame
from ..pipeline.pixels import to_rgb
from ..pipeline.stage import Context, Outputs
from ..pipeline.units import Duration
from .chat_client import ChatClient, Limits
from .chat_history import ChatHistory
from .close_up import close_up
from .endpoint import EndpointOptions, check_url, is_local, key_of
from .endpoint_guard import EndpointGuard
from .endpoint_http import EndpointFailed
from .question_rules import wish
from .vlm_answers import Asked, Questions, Voice, tell_answered

log = logging.getLogger(__name__)

_MAX_ASKED, _MAX_SAID = 4_000, 20_000  # characters
_QUALITY = 80  # JPEG: what a vision tower still sees of
_SYSTEM = (
    "You watch a live camera. Each question comes with its newest pictures, oldest first. Answer in one to three "
    "short spoken sentences, only from what they show."
)


class RemoteOptions(EndpointOptions):
    """base_url: as http://localhost:8000/v1; empty: no endpoint. key: env:NAME or file:PATH. pictures: how many are
    sent with a question. side: pixels of their longer side."""

    base_url: str = ""
    pictures: int = Field(default=4, ge=1, le=64)
    side: int = Field(default=512, ge=64, le=2048)
    first_token: Duration = Field(default=20 * SECOND, gt=0)
    between_tokens: Duration = Field(default=5 * SECOND, gt=0)
    history_turns: int = Field(default=4, ge=1, le=100)

    @field_validator("base_url")
    @classmethod
    def _http(cls, value: str) -> str:
        return check_url(value) if value else value


class Remote:
    """One session's side of an endpoint. `options` also holds model, fps, system and answer_tokens."""

    def __init__(self, ctx: Context, options: Any, voice: Voice, notes: Callable[[], str]) -> None:
        self.ctx, self.options, self._voice, self._notes = ctx, options, voice, notes
        self.questions = Questions(ctx, self._reply)
        self._window: deque[VideoFrame] = deque(maxlen=options.pictures)
        self._history = ChatHistory(options.history_turns, 32_768)
        self._guard = EndpointGuard(
            ctx.clock,
            options.base_url,
            options.model,
            options.key,
            failures=options.failures,
            cooldown=options.cooldown,
        )
        self._client: ChatClient | None = None

    async def start(self) -> None:
        """Raises: StageError."""
        o = self.options
        key = await key_of(self.ctx, o.key)
        if not is_local(o.base_url):
            log.warning("%s: pictures of the camera leave this machine when it is asked", self.ctx.node)
            if o.base_url.startswith("http:"):
                log.warning("%s: they and the key travel unencrypted; use https", self.ctx.node)
        self._client = ChatClient(
            o.base_url, key, Limits(o.connect, o.first_token, o.between_tokens, 2_097_152)
        )
        self.questions.start()

    async def close(self) -> None:
        await self.questions.close()
        if self._client is not None:
            await self._client.close()

    @property
    def busy(self) -> bool:
        """A request in flight has its own time limits."""
        return self.questions.busy

    async def see(self, frame: VideoFrame, out: Outputs) -> None:
        """Keep it for the next question, at most `fps` a second."""
        if not self._window or frame.pts - self._window[-1].pts >= 0.9 * SECOND / self.options.fps:
            self._window.append(frame)

    def hear(self, text: str) -> Answer | None:
        words = "I cannot watch for that: the model behind the endpoint only looks when it is asked."
        return Answer(words, "standing", False) if wish(text) else None

    async def ask(self, frame: TokenFrame, text: str, out: Outputs) -> str:
        """A question. → what to say to it at once: "" while the endpoint is asked."""
        return await self.questions.ask(frame, text[:_MAX_ASKED], out)

    def flush(self, epoch: int) -> None:
        """A barge-in: the request is given up, by which servers learn to stop."""
        self.questions.flush(epoch)

    async def _reply(self, asked: Asked, out: Outputs) -> None:
        frame, text, epoch = asked.frame, asked.text, asked.epoch
        clock, guard, start = self.ctx.clock, self._guard, self.ctx.clock.now()
        utterance, said = self._voice.begin(), ""

        def put(words: str, end: bool, at: int) -> None:
            out.post("answer", TokenFrame(pts=frame.pts, epoch=at, text=words, utterance=utterance, end=end))

        async def say(words: str) -> None:
            nonlocal said
            if self.ctx.epoch != epoch:
                raise asyncio.CancelledError  # the flush is on its way: this was not said
            if not said:
                self.ctx.emit("vlm_first_token", ms=(clock.now() - start) // MS)
            if len(said) + len(words) > _MAX_SAID:
                raise EndpointFailed(f"an answer is over {_MAX_SAID} characters")
            said += words
            put(words, False, epoch)

        if (attempt := guard.allow()) is None:
            put("I cannot ask the model right now.", True, epoch)
            return
        assert self._client is not None
        try:
            with attempt:
                pictures = list(self._window)
                images = await self.ctx.pool().call(_encode, pictures, self.options.side)
                await self._client.stream(self._request(text, pictures, images), say)
        except EndpointFailed as e:
            self.ctx.emit("vlm_failed", error=str(e), circuit=guard.state)
            log.warning("%s/%s: %s", self.ctx.session, self.ctx.node, e)
            put(" I cannot go on right now." if said else "I cannot answer right now.", True, epoch)
        except BaseException:  # interrupted
            put("", True, self.ctx.epoch)
            raise
        else:
            put("", True, epoch)
            tell_answered(frame, out, "endpoint", epoch=epoch)
            self._history.add("user", text)
            self._history.add("assistant", said)

    def _request(self, text: str, pictures: list[VideoFrame], images: list[str]) -> dict[str, object]:
        content: list[dict[str, object]] = []
        for frame, image in zip(pictures, images, strict=False):
            ago = (pictures[-1].pts - frame.pts) / SECOND
            content.append(
                {"type": "text", "text": f"{ago:.1f} seconds before the newest:" if ago else "Newest:"}
            )
            content.append({"type": "image_url", "image_url": {"url": image}})
            if frame is pictures[-1] and len(images) > len(pictures):
                content.append({"type": "text", "text": "What matters of it, in full:"})
                content.append({"type": "image_url", "image_url": {"url": images[-1]}})
        content.append({"type": "text", "text": f"{self._notes()}{text}"})
        messages: list[Mapping[str, object]] = [*self._history.messages(self.options.system or _SYSTEM)]
        messages.append({"role": "user", "content": content})
        return {"model": self.options.model, "messages": messages, "max_tokens": self.options.answer_tokens}


def _encode(frames: list[VideoFrame], side: int) -> list[str]:
    """data: URLs of JPEGs whose longer side is at most `side`; after them the close-up of the last, where it has one."""
    out: list[str] = []
    part = close_up(frames[-1]) if frames else None
    for frame in frames if part is None else [*frames, part]:
        image = to_rgb(frame)
        scale = side / max(image.shape[:2])
        if scale < 1:
            size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
        out.append("data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii"))
    return out
