"""Load what the graphs need before the first client asks: libraries, models, voices."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from .clock import SECOND, Clock
from .errors import of_node
from .frame import Frame
from .graph import NodePlan, Plan
from .row_pool import error_words
from .session import Binding, Session
from .stage import Outputs, Stage, StageError

log = logging.getLogger(__name__)

BACKGROUND = 30 * SECOND  # of waiting for what a stage loads beside its `setup`


def _silent_end(node: NodePlan) -> Binding:
    """A source or sink with the same ports that gives nothing and takes everything."""

    class SilentEnd(Stage):
        ports = node.cls.ports

        async def run(self, out: Outputs) -> None:
            return

        def process(self, port: str, frame: Frame, out: Outputs) -> None:
            return

    def bind(options: Any, params: Any) -> Stage:
        return SilentEnd(options, params)

    return bind


async def loaded(session: Session) -> bool:
    """Until what its stages load beside their `setup` is there, up to BACKGROUND: is it? Raises: StageError."""
    return all(await asyncio.gather(*(_loaded(r.node, r.stage) for r in session.runners.values())))


async def _loaded(node: str, stage: Stage) -> bool:
    try:
        async with asyncio.timeout(BACKGROUND / SECOND):
            await stage.loaded()
    except TimeoutError:
        log.info("node %s goes on loading", node)
        return False
    except StageError as e:
        raise of_node(node, e) from e
    return True


async def warm(plan: Plan, clock: Clock, make: Any = Session) -> str:
    """Set up every stage of the graph once and close it again. Returns "" or what failed, in words.

    What loads in the background is waited for, up to BACKGROUND. make: as `Session`, with the daemon's pools.
    Sources and sinks are left alone: setting them up would open cameras and write over files.
    """
    ends: Mapping[str, Binding] = {
        n.use: _silent_end(n) for n in plan.nodes.values() if not (n.cls.ports.inputs and n.cls.ports.outputs)
    }
    session: Session = make(plan, f"warm-{plan.name}", clock, bindings=ends)
    try:
        await session.start()
        await loaded(session)
    except StageError as e:
        log.error("graph %s cannot start: %s", plan.name, e)
        return str(e)
    # the boundary: a stage's own fault must not keep the other graphs from being served
    except Exception as e:
        log.exception("graph %s cannot start", plan.name)
        return error_words(e)
    finally:
        await session.close("warm")
    return ""
