"""An MQTT broker for a first try: in this process, on this machine only, without persistence or accounts.

amqtt (extra `broker`). For anything that lasts use Mosquitto or another broker of its own.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any

from ..pipeline import stopping
from ..pipeline.stage import StageError

log = logging.getLogger(__name__)


async def serve(port: int, on_ready: Callable[[str], None], on_message: Callable[[str, str], None]) -> None:
    """Until cancelled. on_message: given each message's topic and text. Raises: StageError."""
    try:
        amqtt: Any = importlib.import_module("amqtt.broker")
    except ModuleNotFoundError as e:
        raise StageError(
            f"the demo broker needs the package {e.name!r}: pip install 'penstock[broker]'; or use Mosquitto"
        ) from e
    logging.getLogger("amqtt").setLevel(logging.CRITICAL)
    logging.getLogger("transitions").setLevel(logging.ERROR)
    broker = amqtt.Broker(
        {
            "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}", "max_connections": 64}},
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        }
    )
    try:
        await broker.start()
    except Exception as e:
        # amqtt wraps what the socket said in exceptions of its own
        raise StageError(f"the demo broker cannot listen on 127.0.0.1 port {port}: {e.__cause__ or e}") from e
    try:
        on_ready(f"mqtt://127.0.0.1:{port}")
        await _listen(port, on_message)
    finally:
        await broker.shutdown()


async def _listen(port: int, on_message: Callable[[str, str], None]) -> None:
    import aiomqtt

    async with aiomqtt.Client("127.0.0.1", port) as client:
        await client.subscribe("#")
        async for message in client.messages:
            on_message(message.topic.value, message.payload[:2000].decode(errors="replace"))


def main(port: int, on_ready: Callable[[str], None], on_message: Callable[[str, str], None]) -> None:
    stopping.run(serve(port, on_ready, on_message))
