"""Functions that a language model may call in a conversation."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import entry_points
from typing import Annotated, Any, TypeAlias, cast
from urllib.parse import urlsplit

import aiohttp
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..pipeline.clock import MS, SECOND
from ..pipeline.stage import Context, StageError
from ..pipeline.units import Duration, written_as
from .chat_calls import FunctionCall

log = logging.getLogger(__name__)

GROUP = "penstock.tools"
LONGEST = 16 * 1024  # characters of a result that the model is told

Function: TypeAlias = Callable[[dict[str, Any]], object]


class Tool(BaseModel):
    """One function: what the model is told of it, and what calling it does (one of `url`, `set`, `emit`, `call`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    about: str = Field(min_length=1, max_length=4_000, description="What it does, for the model")
    parameters: dict[str, Any] = Field(
        default_factory=lambda: {"type": "object", "properties": {}},
        description="JSON Schema of its arguments",
    )
    url: str = Field(
        default="", description="POST the arguments there as JSON; the body that comes back is the result"
    )
    set: str = Field(default="", description="Node whose live parameters the arguments are")
    emit: Annotated[
        str, written_as("([a-z][a-z0-9_]{0,31})?", "a name in lower case letters, digits and _, at most 32")
    ] = Field(default="", description="Event that carries the arguments")
    call: str = Field(default="", description=f"Function by its name in the entry points {GROUP!r}")
    timeout: Duration = Field(default=5 * SECOND, gt=0, le=120 * SECOND, description="For one call")

    @field_validator("parameters")
    @classmethod
    def _object(cls, value: dict[str, Any]) -> dict[str, Any]:
        if value.get("type", "object") != "object":
            raise ValueError("write a JSON Schema of type object: functions take named arguments")
        return {"type": "object", **value}

    @field_validator("url")
    @classmethod
    def _http(cls, value: str) -> str:
        parts = urlsplit(value)
        if value and (parts.scheme not in ("http", "https") or not parts.hostname or parts.username):
            raise ValueError("write http(s)://HOST[:PORT]/PATH without a user name")
        return value

    @model_validator(mode="after")
    def _one(self) -> Tool:
        ways = [way for way in ("url", "set", "emit", "call") if getattr(self, way)]
        if len(ways) != 1:
            raise ValueError(
                f"a tool needs exactly one of url, set, emit, call; got {', '.join(ways) or 'none'}"
            )
        return self


def check_names(tools: Mapping[str, Tool]) -> None:
    """Raises: ValueError for a name that the wire format does not take."""
    for name in tools:
        if not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name):
            raise ValueError(f"tool name {name!r}: 1 to 64 letters, digits, _ and - are accepted")


class ToolBox:
    """The tools of one stage. What goes wrong in a call is told to the model, which can say so or try again."""

    def __init__(self, tools: Mapping[str, Tool], ctx: Context) -> None:
        """Raises: StageError when a function is not installed."""
        self._tools = dict(tools)
        self._ctx = ctx
        self._http: aiohttp.ClientSession | None = None
        self._functions = {name: _installed(name, tool.call) for name, tool in tools.items() if tool.call}

    def __bool__(self) -> bool:
        return bool(self._tools)

    def schemas(self) -> list[dict[str, Any]]:
        """As a request carries them."""
        return [
            {
                "type": "function",
                "function": {"name": name, "description": tool.about, "parameters": tool.parameters},
            }
            for name, tool in self._tools.items()
        ]

    async def close(self) -> None:
        if self._http is not None:
            await self._http.close()

    async def run(self, calls: list[FunctionCall]) -> list[dict[str, Any]]:
        """All of them at once; a `tool` message for each, in order. Cancelling cancels what still runs."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._one(c), name=f"tool/{c.name}") for c in calls]
        return [
            {"role": "tool", "tool_call_id": call.id, "content": task.result()}
            for call, task in zip(calls, tasks, strict=True)
        ]

    async def _one(self, call: FunctionCall) -> str:
        tool = self._tools.get(call.name)
        start = self._ctx.clock.now()
        error = ""
        result: object = None
        if tool is None:
            error = f"there is no function {call.name!r:.80}; there are: {', '.join(self._tools)}"
        else:
            try:
                async with asyncio.timeout(tool.timeout / SECOND):
                    result = await self._do(call.name, tool, call.parsed())
            except TimeoutError:
                error = f"no result within {tool.timeout / SECOND:g} s"
            except (ValueError, StageError, aiohttp.ClientError) as e:
                error = str(e) or type(e).__name__
            except Exception as e:  # noqa: BLE001 - somebody else's function: logged and counted
                log.warning("tool %s failed: %s", call.name, type(e).__name__)
                error = f"it failed ({type(e).__name__})"
        self._ctx.emit(
            "tool_called",
            name=call.name if tool else "",
            ok=not error,
            ms=(self._ctx.clock.now() - start) // MS,
        )
        return _text({"error": error} if error else result)

    async def _do(self, name: str, tool: Tool, arguments: dict[str, Any]) -> object:
        if tool.url:
            return await self._post(tool.url, arguments)
        if tool.set:
            self._ctx.set_params(tool.set, arguments)
            return "done"
        if tool.emit:
            self._ctx.emit(tool.emit, **{k: v for k, v in arguments.items() if k != "event"})
            return "done"
        function = self._functions[name]
        if inspect.iscoroutinefunction(function):
            return await cast("Awaitable[object]", function(arguments))
        return await self._ctx.pool().call(function, arguments)

    async def _post(self, url: str, arguments: dict[str, Any]) -> str:
        if self._http is None:
            self._http = aiohttp.ClientSession()
        async with self._http.post(url, json=arguments, allow_redirects=False) as response:
            body = await response.content.read(4 * LONGEST)
            if not 200 <= response.status < 300:
                raise ValueError(f"HTTP {response.status}")
            return body.decode(errors="replace")


def _installed(tool: str, name: str) -> Function:
    found = {e.name: e for e in entry_points(group=GROUP)}
    if name not in found:
        raise StageError(
            f"tool {tool!r}: no function {name!r} in the entry points {GROUP!r}; there are: {', '.join(found) or 'none'}"
        )
    return cast("Function", found[name].load())


def _text(result: object) -> str:
    if isinstance(result, str):
        text = result
    else:
        try:
            text = json.dumps(result, ensure_ascii=False)
        except (TypeError, ValueError):
            text = str(result)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … (cut after {LONGEST} characters)"
