"""The data channel `penstock`: docs/protocol.md, version 1. Knows messages, not sockets."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ..pipeline.clock import MS, SECOND, Clock
from ..pipeline.faults import in_words
from ..pipeline.frame import TokenFrame
from ..pipeline.stage import StageError
from .transcript import Transcript

log = logging.getLogger(__name__)

VERSION = 1
MAX_BYTES = 16 * 1024  # of a message, both ways
RATE = 50  # messages a second
MAX_ERRORS = 100  # within ERROR_WINDOW, then the session ends
ERROR_WINDOW = 600 * SECOND
MAX_BUFFERED = 512 * 1024  # bytes not yet sent: beyond, a far end that does not read loses messages


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    v: Literal[1]


class Chat(_Message):
    type: Literal["chat"]
    text: str = Field(min_length=1, max_length=2000)


class Params(_Message):
    type: Literal["params"]
    node: str = Field(max_length=64)
    values: dict[str, Any] = Field(max_length=64)


class Interrupt(_Message):
    type: Literal["interrupt"]


class StatsEvery(_Message):
    type: Literal["stats"]
    every_ms: int = Field(ge=0, le=10_000)


class Ping(_Message):
    type: Literal["ping"]
    id: int | str = Field(default=0)


ClientMessage: TypeAlias = Annotated[
    Chat | Params | Interrupt | StatsEvery | Ping, Field(discriminator="type")
]
_parse: TypeAdapter[ClientMessage] = TypeAdapter(ClientMessage)
_TYPES = "chat, interrupt, params, ping, stats"
_KINDS = {*_TYPES.split(", "), "rate", "size", "json", "version"}  # what may stand in the log of a refusal
LEAST_STATS_MS = 100


@dataclass(frozen=True, slots=True)
class Back:
    """A client that comes back has seen all up to `after`."""

    after: int = 0


class Controlled(Protocol):
    """What of a session the channel uses."""

    def set_params(self, node: str, values: Mapping[str, object]) -> None: ...
    def interrupt(self, scope: str | None = None) -> None: ...
    def stats(self) -> Mapping[str, Any]: ...
    def describe(self) -> list[dict[str, Any]]: ...


class Wire(Protocol):
    """An open, ordered, reliable channel (aiortc's RTCDataChannel)."""

    @property
    def readyState(self) -> str: ...
    @property
    def bufferedAmount(self) -> int: ...
    def send(self, data: str) -> None: ...
    def close(self) -> None: ...


class ControlChannel:
    """One session's end of the channel. Messages sent while it is not open are dropped.

    session: what the messages steer. chat: takes one line of text. graph, session_id: for `hello`.
    resume: the token with which the client may come back over another connection; empty: it may not.
    """

    def __init__(
        self,
        session: Controlled,
        session_id: str,
        graph: str,
        clock: Clock,
        chat: Callable[[str], None],
        resume: str = "",
    ) -> None:
        self.session = session
        self.session_id = session_id
        self.graph = graph
        self.clock = clock
        self.chat = chat
        self.resume = resume
        self.transcript = Transcript()
        self.steers = True  # may the client change anything? One with the scope `view` may not
        self.barred = False  # after MAX_ERRORS: no message is taken from then on
        self.abused: Callable[[str], None] = lambda why: None  # told once, when it is barred
        self.dropped = 0  # messages that a slow far end lost
        self.every = 0  # ns between `stats`; 0: none wanted
        self.more: Callable[[], Mapping[str, Any]] = dict  # figures beside the session's
        self._wanted = asyncio.Event()
        self._wire: Wire | None = None
        self._received: deque[int] = deque(maxlen=RATE)
        self._errors: deque[int] = deque(maxlen=MAX_ERRORS)  # when
        self._too_many = -SECOND  # when that was told last

    def opened(self, wire: Wire, back: Back | None = None) -> None:
        """The far end's channel is open: say hello, and to one that is back what it has missed."""
        self._wire = wire
        self._set_every(0)
        hello: dict[str, Any] = {
            "session": self.session_id,
            "graph": self.graph,
            "nodes": self.session.describe(),
            "realtime": True,
        }
        if self.resume:
            hello["resume"] = self.resume
        if back is not None:
            hello |= {"resumed": True, "missed": self.transcript.missed(back.after)}
        self.send("hello", **hello)
        if back is not None:
            for message, fields in list(self.transcript.since(back.after)):
                self.send(message, **fields)

    def closed(self, wire: Wire | None = None) -> None:
        """That wire, or whichever it is, is gone."""
        if wire is None or wire is self._wire:
            self._wire = None
            self._set_every(0)

    # ------------------------------------------------------------ client → server

    def receive(self, raw: str | bytes) -> None:
        """Act on one message, or answer `error` and change nothing."""
        if self._wire is None or self.barred:
            return
        now = self.clock.now()
        if len(self._received) == RATE and now - self._received[0] < SECOND:
            if now - self._too_many >= SECOND:  # a burst is one error
                self._too_many = now
                self._refuse(f"too many messages: at most {RATE} a second are taken", "rate")
            return
        self._received.append(now)
        size = len(raw) if isinstance(raw, bytes) else len(raw.encode(errors="replace"))
        if size > MAX_BYTES:
            self._refuse(f"the message has {size} bytes; at most {MAX_BYTES} are taken", "size")
            return
        if isinstance(raw, bytes):
            self._refuse("a binary message; only JSON text is taken", "json")
            return
        try:
            data = json.loads(raw)
        except (ValueError, RecursionError):
            self._refuse("the message is not JSON", "json")
            return
        if not isinstance(data, dict) or data.get("v") != VERSION:
            self._refuse(f'the message is no object with "v":{VERSION}', "version")
            return
        about = str(data.get("type"))[:32]
        try:
            message = _parse.validate_python(data)
        except ValidationError as e:
            self._refuse(_in_words(e), about)
            return
        try:
            self._act(message)
        except (StageError, ValueError) as e:
            self._refuse(str(e)[:1000], about)

    def _act(self, message: ClientMessage) -> None:
        if not self.steers and isinstance(message, Chat | Params | Interrupt):
            raise ValueError("this client's token may watch, but not take part: it lacks the scope talk")
        match message:
            case Chat(text=text):
                self.chat(text)
                self.transcript.add("chat", {"text": text})
            case Params(node=node, values=values):
                self.session.set_params(node, values)  # the session tells all listeners
            case Interrupt():
                self.session.interrupt()
            case StatsEvery(every_ms=every_ms):
                if 0 < every_ms < LEAST_STATS_MS:
                    raise ValueError(f"every_ms is {every_ms}; 0 or {LEAST_STATS_MS} to 10000 are taken")
                self._set_every(every_ms * MS)
            case Ping(id=id_):
                self.send("pong", id=id_)

    def _refuse(self, why: str, about: str) -> None:
        now = self.clock.now()
        self._errors.append(now)
        self.send("error", message=why, about=about)
        if len(self._errors) == self._errors.maxlen and now - self._errors[0] < ERROR_WINDOW:
            self.barred = True
            # without its words: they hold what the client wrote, which is no matter of the log
            kind = about if about in _KINDS else "of no known type"
            told = f"its client sent {len(self._errors)} messages that could not be taken; the last: {kind}"
            log.warning("%s ends: %s", self.session_id, told)
            self.abused(told)

    # ------------------------------------------------------------ server → client

    def send(self, message: str, /, **fields: Any) -> None:
        """One message; dropped when the channel is not open or the far end does not read."""
        wire = self._wire
        if wire is None or wire.readyState != "open":
            return
        if wire.bufferedAmount > MAX_BUFFERED:
            self.dropped += 1
            return
        text = json.dumps({"v": VERSION, "type": message} | fields, ensure_ascii=False, default=str)
        if len(text) > MAX_BYTES // 4 and len(text.encode()) > MAX_BYTES and message != "hello":
            self.dropped += 1
            log.warning("%s: a %s message is over %d bytes", self.session_id, message, MAX_BYTES)
            return
        wire.send(text)

    def text(self, source: str, kind: str, frame: TokenFrame) -> None:
        fields: dict[str, Any] = {
            "from": source,
            "kind": kind,
            "text": frame.text,
            "pts_ms": frame.pts // MS,
            "until_ms": frame.until // MS,
            "utterance": frame.utterance,
            "end": frame.end,
        }
        if kind == "partial":  # the next one, or its commit, takes its place
            self.send("text", **fields)
        else:
            self.send("text", **fields, n=self.transcript.add("text", fields))

    def event(self, node: str, name: str, fields: Mapping[str, Any], pts: int) -> None:
        """An event of the session, `params` among them."""
        if name == "params":
            self.send("params", node=node, values=dict(fields.get("values", {})))
        else:
            self.send("event", **{"from": node}, name=name, fields=dict(fields), pts_ms=pts // MS)

    async def run_stats(self) -> None:
        """Send `stats` at the interval the client asks for, until cancelled."""
        while True:
            if not self.every:
                self._wanted.clear()
                await self._wanted.wait()
                continue
            self.send("stats", **self.session.stats(), **self.more())
            await self.clock.sleep(self.every)

    def _set_every(self, every: int) -> None:
        self.every = every
        if every:
            self._wanted.set()


def _in_words(error: ValidationError) -> str:
    first = error.errors()[0]
    if first["type"] == "union_tag_invalid":
        return f"unknown message type; accepted: {_TYPES}"
    if first["type"] == "union_tag_not_found":
        return f'the message has no "type"; accepted: {_TYPES}'
    where = ".".join(str(part) for part in first["loc"][1:])
    return f"{where}: {in_words(first)}" if where else in_words(first)
