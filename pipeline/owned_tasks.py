"""Which stage started a task, so that what it forgets to end does not outlive its session.

A task belongs to the stage in whose context it was created, also by way of other tasks. What serves several
sessions (loading a model) is created in an empty context: it belongs to nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import Context, ContextVar
from typing import Any, TypeAlias
from weakref import WeakSet

Owned: TypeAlias = "WeakSet[asyncio.Task[Any]]"

OWNER: ContextVar[Owned] = ContextVar("penstock_owner")


def watch_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Keep account of the tasks of this loop from now on. A factory that somebody else has set stays."""
    if loop.get_task_factory() is None:
        loop.set_task_factory(_make)


def of_nobody(coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """A task that outlives the stage that happened to start it."""
    return asyncio.get_running_loop().create_task(coroutine, name=name, context=Context())


async def end(tasks: Owned, within_s: float) -> list[str]:
    """Cancel those that still run, but the present one. Returns their names."""
    left = [t for t in tasks if not t.done() and t is not asyncio.current_task()]
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left, timeout=within_s)
    return [task.get_name() for task in left]


def _make(
    loop: asyncio.AbstractEventLoop, coroutine: Any, context: Context | None = None, **more: Any
) -> asyncio.Task[Any]:
    task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, context=context, **more)
    owner = OWNER.get(None) if context is None else context.get(OWNER)
    if owner is not None:
        owner.add(task)
    return task
