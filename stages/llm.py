"""`llm.chat`: a language model behind any OpenAI-compatible endpoint takes part in the conversation."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ..pipeline.breaker import CircuitBreaker
from ..pipeline.clock import MS, SECOND
from ..pipeline.frame import Frame, TokenFrame
from ..pipeline.stage import Control, Flush, In, Out, Outputs, Ports, Stage, StageError
from ..pipeline.units import Duration
from .chat_client import ChatClient, EndpointFailed, Limits
from .chat_history import ChatHistory

log = logging.getLogger(__name__)

_MAX_HEARD = 4_000  # characters of one line; speech of a minute has about 1,000
_MAX_SAID = 20_000  # characters of one reply: 20 minutes of speech
_MAX_KEY = 16 * 1024  # bytes; tokens of cloud services have up to some kilobytes
_SYSTEM = "You are a voice assistant. Answer in one to three short spoken sentences, without lists, markup or emoji."


class LlmChat(Stage):
    """Streams the model's reply as deltas. A flush of its scope ends the request at once.

    What the model is told that it said is what was put out before the interruption. Deltas are written
    faster than they are spoken, so that may be more than was heard. While the endpoint fails it says so once,
    then is silent until an answer comes. What is heard during a reply waits for its end.
    """

    ports = Ports(
        inputs={"heard": In(TokenFrame, many=True)},
        outputs={"say": Out(TokenFrame, origin="token")},
    )

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True)
        base_url: str = Field(description="As http://localhost:11434/v1; /chat/completions is appended")
        model: str = Field(min_length=1, description="As the endpoint names it")
        key: str = Field("", description="Where its key is: env:NAME or file:PATH; empty for none")
        system: str = Field(_SYSTEM, max_length=32_000, description="The system prompt")
        apology: str = Field("Sorry, I can't answer right now.", description="Said once when it fails")
        connect: Duration = Field(3 * SECOND, gt=0, description="Time to connect in")
        first_token: Duration = Field(10 * SECOND, gt=0, description="From the question to the first text")
        between_tokens: Duration = Field(5 * SECOND, gt=0, description="From one text to the next")
        history_turns: int = Field(20, ge=1, le=1_000, description="Questions and answers remembered")
        history_bytes: int = Field(32_768, ge=256, le=4_194_304, description="Bytes of them")
        response_bytes: int = Field(2_097_152, ge=1_024, le=67_108_864, description="Longest response read")
        failures: int = Field(3, ge=1, le=100, description="In a row, then it is left alone for a while")
        cooldown: Duration = Field(5 * SECOND, gt=0, le=60 * SECOND, description="That while, at first")

        @field_validator("base_url")
        @classmethod
        def _http(cls, value: str) -> str:
            parts = urlsplit(value)  # a ValueError of its own for a bad port or address
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
                raise ValueError(
                    "not an endpoint; write http(s)://HOST[:PORT]/PATH, as http://localhost:8000/v1"
                )
            if parts.username is not None or parts.password is not None:
                raise ValueError("holds a user name or password; write the key as key: env:NAME or file:PATH")
            _ = parts.port
            return value

        @field_validator("key")
        @classmethod
        def _reference(cls, value: str) -> str:
            kind, _, where = value.partition(":")
            if value and (kind not in ("env", "file") or not where):
                # the value may be the key itself: it is not repeated, here or by whoever prints this
                raise ValueError("not a reference to a key; write env:NAME or file:PATH")
            return value

    class Params(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True)
        temperature: float = Field(0.7, ge=0.0, le=2.0, description="0 takes the likeliest word")
        max_tokens: int = Field(300, ge=1, le=4096, description="Longest reply")

    async def setup(self) -> None:
        o = self.options
        try:
            key = await self.ctx.pool().call(read_key, o.key)
        except ValueError as e:
            raise StageError(f"node {self.ctx.node!r}: {e}") from e
        if key and o.base_url.startswith("http:") and not _is_local(o.base_url):
            log.warning("%s: the endpoint's key travels unencrypted; use https", self.ctx.node)
        limits = Limits(o.connect, o.first_token, o.between_tokens, o.response_bytes)
        self._client = ChatClient(o.base_url, key, limits)
        self._breaker = CircuitBreaker(o.failures, o.cooldown)
        self._history = ChatHistory(o.history_turns, o.history_bytes)
        self._reply: asyncio.Task[None] | None = None
        self._epoch = 0  # of the reply in flight
        self._utterance = 0
        self._apologised = False  # in this outage

    async def process(self, port: str, frame: Frame, out: Outputs) -> None:
        assert isinstance(frame, TokenFrame)
        heard = frame.text.strip()[:_MAX_HEARD]
        if not heard:
            return
        self._history.add("user", heard)
        self._utterance += 1
        self._epoch = self.ctx.epoch
        reply = _Reply(max(frame.pts, frame.until), self._utterance, out)
        try:
            async with asyncio.TaskGroup() as tasks:
                self._reply = tasks.create_task(
                    self._answer(reply), name=f"{self.ctx.session}/{self.ctx.node}/reply"
                )
        finally:
            self._reply = None
            self._history.add("assistant", reply.said)
        if reply.open:  # interrupted; readers of text outside the scope learn that nothing follows
            reply.close(self.ctx.epoch)

    async def control(self, message: Control) -> None:
        await super().control(message)
        # a flush may be told after the next question has begun, which it does not mean
        if isinstance(message, Flush) and self._reply is not None and self._epoch < message.epoch:
            self._reply.cancel()

    async def close(self) -> None:
        client = getattr(self, "_client", None)
        if client is not None:
            await client.close()

    @property
    def busy(self) -> bool:
        """A request in flight has its own time limits."""
        return getattr(self, "_reply", None) is not None

    async def _answer(self, reply: _Reply) -> None:
        clock, breaker = self.ctx.clock, self._breaker
        start = clock.now()
        if not breaker.allow(start):
            await self._apologise(reply)
            return
        epoch = self._epoch
        over = False

        async def say(text: str) -> None:
            nonlocal over
            if self.ctx.epoch != epoch:
                raise asyncio.CancelledError  # the flush is on its way: this was not said
            if not reply.said:
                over = True
                breaker.succeeded()
                self.ctx.emit("llm_first_token", ms=(clock.now() - start) // MS)
            if len(reply.said) + len(text) > _MAX_SAID:
                raise EndpointFailed(f"a reply is over {_MAX_SAID} characters")
            await reply.say(text)

        try:
            await self._client.stream(self._request(), say)
            over = True
            breaker.succeeded()
            self._apologised = False
            await reply.end()
        except EndpointFailed as e:
            over = True
            breaker.failed(clock.now(), e.retry_after)
            state = breaker.state(clock.now())
            log.warning("%s/%s: %s; circuit %s", self.ctx.session, self.ctx.node, e, state)
            self.ctx.emit("llm_failed", error=str(e), circuit=state)
            await self._apologise(reply)
        finally:
            if not over:
                breaker.abandoned()

    def _request(self) -> dict[str, object]:
        return {
            "model": self.options.model,
            "messages": self._history.messages(self.options.system),
            "temperature": self.params.temperature,
            "max_tokens": self.params.max_tokens,
        }

    async def _apologise(self, reply: _Reply) -> None:
        """End the reply, with a word about it if none was said in this outage."""
        words = "" if self._apologised else self.options.apology
        self._apologised = True
        if words or reply.said:
            await reply.end(f" {words}" if words and reply.said else words)


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


def read_key(reference: str) -> str:
    """The key that `env:NAME` or `file:PATH` names; "" for none. Raises: ValueError, never showing it."""
    kind, _, where = reference.partition(":")
    if kind == "env":
        key = os.environ.get(where, "")
    elif kind == "file":
        try:
            with Path(where).expanduser().open("rb") as file:
                key = file.read(_MAX_KEY).decode("ascii", errors="replace")
        except OSError as e:
            raise ValueError(f"key {reference!r} cannot be read: {e.strerror}") from None
    else:
        return ""
    key = key.strip()
    if not key or not (key.isascii() and key.isprintable()):
        raise ValueError(f"key {reference!r} is empty or not one line of printable ASCII")
    return key


def _is_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
