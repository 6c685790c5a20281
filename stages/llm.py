"""`llm.chat`: a language model behind any OpenAI-compatible endpoint takes part in the conversation."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ..pipeline.clock import MS, SECOND
from ..pipeline.frame import Frame, TokenFrame
from ..pipeline.stage import Control, Flush, In, Out, Outputs, Ports, Stage
from ..pipeline.units import Duration
from .chat_client import ChatClient, Limits
from .chat_history import ChatHistory, Said
from .chat_tools import Tool, ToolBox, check_names
from .endpoint import EndpointOptions, is_local, key_of
from .endpoint_guard import EndpointGuard
from .endpoint_http import EndpointFailed

log = logging.getLogger(__name__)

_MAX_HEARD = 4_000  # characters of one line; speech of a minute has about 1,000
_MAX_SAID = 20_000  # characters of one reply: 20 minutes of speech
_OPEN = 8  # replies that may still be sounding; older ones were heard
_SYSTEM = "You are a voice assistant. Answer in one to three short spoken sentences, without lists, markup or emoji."


class LlmChat(Stage):
    """Streams the model's reply as deltas. A flush of its scope ends the request at once.

    What the model is told that it said are the words that were played to their end before the interruption
    (without a sink that plays in real time, all that was put out). While the endpoint fails it says so once,
    then is silent until an answer comes. What is heard during a reply waits for its end.

    `tools` are functions that the model may call: an address, another node's parameters, an event, or a Python
    function. Their results go back to it, for `tool_rounds` rounds at most; they are forgotten after the answer.
    """

    ports = Ports(
        inputs={"heard": In(TokenFrame, many=True)},
        outputs={"say": Out(TokenFrame, origin="token")},
    )

    class Options(EndpointOptions):
        base_url: str = Field(description="As http://localhost:11434/v1; /chat/completions is appended")
        system: str = Field(default=_SYSTEM, max_length=32_000, description="The system prompt")
        apology: str = Field(
            default="Sorry, I can't answer right now.", description="Said once when it fails"
        )
        first_token: Duration = Field(
            default=10 * SECOND, gt=0, description="From the question to the first text"
        )
        between_tokens: Duration = Field(default=5 * SECOND, gt=0, description="From one text to the next")
        history_turns: int = Field(default=20, ge=1, le=1_000, description="Questions and answers remembered")
        history_bytes: int = Field(default=32_768, ge=256, le=4_194_304, description="Bytes of them")
        response_bytes: int = Field(
            default=2_097_152, ge=1_024, le=67_108_864, description="Longest response read"
        )
        tools: dict[str, Tool] = Field(default_factory=dict, max_length=64, description="Functions by name")
        tool_rounds: int = Field(default=4, ge=1, le=16, description="Rounds of calls in one answer")

        @field_validator("tools")
        @classmethod
        def _names(cls, value: dict[str, Tool]) -> dict[str, Tool]:
            check_names(value)
            return value

    class Params(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True)
        temperature: float = Field(default=0.7, ge=0.0, le=2.0, description="0 takes the likeliest word")
        max_tokens: int = Field(default=300, ge=1, le=4096, description="Longest reply")

    async def setup(self) -> None:
        o = self.options
        key = await key_of(self.ctx, o.key)
        if key and o.base_url.startswith("http:") and not is_local(o.base_url):
            log.warning("%s: the endpoint's key travels unencrypted; use https", self.ctx.node)
        limits = Limits(o.connect, o.first_token, o.between_tokens, o.response_bytes)
        self._tools = ToolBox(o.tools, self.ctx)
        self._client = self.connect(o.base_url, key, limits)
        self._guard = EndpointGuard(
            self.ctx.clock, o.base_url, o.model, o.key, failures=o.failures, cooldown=o.cooldown
        )
        self._history = ChatHistory(o.history_turns, o.history_bytes)
        self._reply: asyncio.Task[None] | None = None
        self._epoch = 0  # of the reply in flight
        self._utterance = 0
        self._apologised = False  # in this outage
        self._open: deque[_Open] = deque(maxlen=_OPEN)

    def connect(self, base_url: str, key: str, limits: Limits) -> ChatClient:
        """Where the answers come from."""
        return ChatClient(base_url, key, limits)

    async def process(self, port: str, frame: Frame, out: Outputs) -> None:
        assert isinstance(frame, TokenFrame)
        heard = frame.text.strip()[:_MAX_HEARD]
        if not heard:
            return
        self._settle()
        self._history.add("user", heard)
        self._utterance += 1
        self._epoch = self.ctx.epoch
        self.ctx.playback.forget(self._utterance)
        reply = _Reply(max(frame.pts, frame.until), self._utterance, out)
        try:
            async with asyncio.TaskGroup() as tasks:
                self._reply = tasks.create_task(
                    self._answer(reply), name=f"{self.ctx.session}/{self.ctx.node}/reply"
                )
        finally:
            self._reply = None
            line = self._history.add("assistant", reply.said)
            self._open.append(_Open(line, reply.said, self._utterance, self._epoch))
        if reply.open:  # interrupted; readers of text outside the scope learn that nothing follows
            reply.close(self.ctx.epoch)

    async def control(self, message: Control) -> None:
        await super().control(message)
        # a flush may be told after the next question has begun, which it does not mean
        if isinstance(message, Flush) and self._reply is not None and self._epoch < message.epoch:
            self._reply.cancel()

    async def close(self) -> None:
        for part in (getattr(self, "_client", None), getattr(self, "_tools", None)):
            if part is not None:
                await part.close()

    @property
    def busy(self) -> bool:
        """A request in flight has its own time limits."""
        return getattr(self, "_reply", None) is not None

    async def _answer(self, reply: _Reply) -> None:
        clock, guard = self.ctx.clock, self._guard
        start = clock.now()
        if (attempt := guard.allow()) is None:
            await self._apologise(reply)
            return
        epoch = self._epoch

        async def say(text: str) -> None:
            if self.ctx.epoch != epoch:
                raise asyncio.CancelledError  # the flush is on its way: this was not said
            if not reply.said:
                attempt.succeeded()
                self.ctx.emit("llm_first_token", ms=(clock.now() - start) // MS)
            if len(reply.said) + len(text) > _MAX_SAID:
                raise EndpointFailed(f"a reply is over {_MAX_SAID} characters")
            await reply.say(text)

        try:
            with attempt:
                await self._converse(say)
            self._apologised = False
            await reply.end()
        except EndpointFailed as e:
            state = guard.state
            log.warning("%s/%s: %s; circuit %s", self.ctx.session, self.ctx.node, e, state)
            self.ctx.emit("llm_failed", error=str(e), circuit=state)
            await self._apologise(reply)

    async def _converse(self, say: Callable[[str], Awaitable[None]]) -> None:
        """Ask until the model has no more functions to call. Raises: EndpointFailed."""
        messages: list[dict[str, Any]] = [*self._history.messages(self.options.system)]
        for left in range(self.options.tool_rounds, -1, -1):
            calls = await self._client.stream(self._request(messages, last=not left), say)
            if not calls:
                return
            if not self._tools or not left:
                raise EndpointFailed("functions were called that may not be")
            messages.append(
                {"role": "assistant", "content": None, "tool_calls": [c.as_message() for c in calls]}
            )
            messages += await self._tools.run(calls)

    def _request(self, messages: list[dict[str, Any]], *, last: bool) -> dict[str, object]:
        request: dict[str, object] = {
            "model": self.options.model,
            "messages": messages,
            "temperature": self.params.temperature,
            "max_tokens": self.params.max_tokens,
        }
        if self._tools:
            request["tools"] = self._tools.schemas()
            if last:
                request["tool_choice"] = "none"
        return request

    def _settle(self) -> None:
        """Let the history say what was heard of interrupted replies."""
        playback = self.ctx.playback
        sounding: list[_Open] = []
        for reply in self._open:
            if reply.epoch >= self.ctx.epoch:
                sounding.append(reply)
            elif playback.paced:
                # what was played may go on after what the model said: an apology
                self._history.revise(reply.line, playback.heard(reply.utterance)[: len(reply.said)])
        self._open = deque(sounding, maxlen=_OPEN)

    async def _apologise(self, reply: _Reply) -> None:
        """End the reply, with a word about it if none was said in this outage."""
        words = "" if self._apologised else self.options.apology
        self._apologised = True
        if words or reply.said:
            await reply.end(f" {words}" if words and reply.said else words)


@dataclass(slots=True)
class _Open:
    """A reply that may not have been heard to its end."""

    line: Said
    said: str
    utterance: int
    epoch: int


class _Reply:
    """One utterance going out, and what of the model's words has gone."""

    def __init__(self, pts: int, utterance: int, out: Outputs) -> None:
        self.said = ""  # the model's words only, no apology
        self.open = False  # something has gone out, and no end
        self._pts = pts  # an answer begins when the question has ended
        self._utterance = utterance
        self._out = out
        self._epoch = out.epoch

    async def say(self, text: str) -> None:
        self.said += text  # before the wait for room: it is on its way then
        await self._put(text, end=False)

    async def end(self, text: str = "") -> None:
        await self._put(text, end=True)

    def close(self, epoch: int) -> None:
        """End it without a word, in the epoch that ended it."""
        self.open = False
        self._out.post("say", self._frame("", True, epoch))

    async def _put(self, text: str, end: bool) -> None:
        self.open = not end
        await self._out.send("say", self._frame(text, end, self._epoch))

    def _frame(self, text: str, end: bool, epoch: int) -> TokenFrame:
        return TokenFrame(pts=self._pts, text=text, utterance=self._utterance, end=end, epoch=epoch)
