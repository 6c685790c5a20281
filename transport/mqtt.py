"""One connection to an MQTT broker, kept up: what waits while it is away is bounded, what was sent is confirmed.

A QoS 1 message leaves the outbox only when the broker has acknowledged it, so a broker's restart repeats
messages but loses none, as long as the outbox has room. Source: MQTT 3.1.1, section 4.3.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

import aiomqtt

from ..pipeline.clock import SECOND, Clock
from ..pipeline.secret import redacted
from ..pipeline.stage import StageError

log = logging.getLogger(__name__)

OUTBOX = 4096  # messages that wait for the broker
BACKOFF = (1, 2, 4, 8, 15)  # s between attempts to connect
LAST_WORDS = 2 * SECOND
MAX_COMMAND = 16 * 1024  # bytes


@dataclass(frozen=True, slots=True)
class Broker:
    """Where and as whom. prefix: the topics' first levels."""

    host: str
    port: int
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    ca: str | None = None
    cert: str | None = None  # ours, where the broker wants one
    key: str | None = None
    prefix: str = "penstock"


def parse_broker(url: str) -> Broker:
    """`mqtts://user:pass@host:8883/prefix?ca=/path&cert=/path&key=/path`. Raises: StageError without the secrets."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise StageError("the MQTT URL cannot be read; write mqtt://host:1883 or mqtts://host:8883") from None
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname:
        raise StageError(f"{redacted(url)} is no MQTT URL; write mqtt://host:1883 or mqtts://host:8883")
    tls = parts.scheme == "mqtts"
    prefix = parts.path.strip("/") or "penstock"
    if any(c in prefix for c in "+#"):
        raise StageError(f"the topic prefix {prefix!r} must not hold + or #")
    query = {key: values[0] for key, values in parse_qs(parts.query, keep_blank_values=True).items()}
    if unknown := sorted(set(query) - {"ca", "cert", "key"}):
        raise StageError(f"the MQTT URL's ?{unknown[0]}= is unknown; known: ca, cert, key")
    if query and not tls:
        raise StageError("?ca=, cert= and key= belong to mqtts://; mqtt:// is without TLS")
    return Broker(
        host=parts.hostname,
        port=port or (8883 if tls else 1883),
        user=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        tls=tls,
        ca=query.get("ca"),
        cert=query.get("cert"),
        key=query.get("key"),
        prefix=prefix,
    )


def tls_context(broker: Broker) -> ssl.SSLContext | None:
    """Checks the broker's certificate and name; None without TLS. Raises: StageError for files that are no
    certificates."""
    if not broker.tls:
        return None
    path = broker.ca
    try:
        context = ssl.create_default_context(cafile=path)
        if broker.cert:
            path = f"{broker.cert} and {broker.key or 'its key'}"
            context.load_cert_chain(broker.cert, broker.key)
    except (OSError, ssl.SSLError) as e:
        raise StageError(f"the MQTT broker's {path} cannot be used: {e.strerror or e}") from e
    return context


@dataclass(frozen=True, slots=True)
class Message:
    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False


class MqttLink:
    """on_command: given the topic's last level and the payload of each `PREFIX/command/…` message."""

    def __init__(self, broker: Broker, clock: Clock, on_command: Callable[[str, bytes], None]) -> None:
        self.broker = broker
        self.connected = False
        self.lost = 0  # messages that found no room
        self.sent = 0
        self._tls = tls_context(broker)
        self._clock = clock
        self._on_command = on_command
        self._outbox: deque[Message] = deque()
        self._retained: dict[str, Message] = {}
        self._news = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        return len(self._outbox)

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="mqtt")

    async def stop(self) -> None:
        """Send what waits if the broker takes it now, say goodbye. Bounded."""
        self._stopping = True
        self._news.set()
        if self._task is not None:
            if self.connected:
                await asyncio.wait([self._task], timeout=LAST_WORDS / SECOND)
            self._task.cancel()
            await asyncio.wait([self._task])

    def publish(self, message: Message) -> None:
        """Never waits. A full outbox loses its oldest QoS 0 message, else its oldest."""
        if message.retain:
            self._retained[message.topic] = message
        if len(self._outbox) >= OUTBOX:
            unimportant = next((i for i, m in enumerate(self._outbox) if m.qos == 0), 0)
            del self._outbox[unimportant]
            self.lost += 1
        self._outbox.append(message)
        self._news.set()

    async def _run(self) -> None:
        attempt = 0
        while not self._stopping:
            try:
                async with self._client() as client:
                    attempt = 0
                    self.connected = True
                    log.info("mqtt: connected to %s:%d", self.broker.host, self.broker.port)
                    await self._converse(client)
            except (aiomqtt.MqttError, OSError) as e:
                # the library's words may hold nothing secret, but the URL stays out of them
                log.warning("mqtt: %s:%d: %s", self.broker.host, self.broker.port, e)
            finally:
                self.connected = False
            if self._stopping:
                return
            await self._clock.sleep(BACKOFF[min(attempt, len(BACKOFF) - 1)] * SECOND)
            attempt += 1

    def _client(self) -> aiomqtt.Client:
        broker = self.broker
        return aiomqtt.Client(
            broker.host,
            broker.port,
            username=broker.user,
            password=broker.password,
            will=aiomqtt.Will(f"{broker.prefix}/status", b"offline", 1, True),
            tls_context=self._tls,
            max_queued_incoming_messages=256,
            timeout=5,
            keepalive=15,
        )

    async def _converse(self, client: aiomqtt.Client) -> None:
        prefix = self.broker.prefix
        await client.subscribe(f"{prefix}/command/+", qos=1)
        await client.publish(f"{prefix}/status", b"online", qos=1, retain=True)
        for message in list(self._retained.values()):  # a broker without persistence has forgotten them
            await client.publish(message.topic, message.payload, qos=message.qos, retain=True)
        receiving = asyncio.create_task(self._receive(client), name="mqtt/receive")
        try:
            while True:
                while self._outbox:
                    message = self._outbox[0]
                    await client.publish(
                        message.topic, message.payload, qos=message.qos, retain=message.retain
                    )
                    self.sent += 1
                    if self._outbox and self._outbox[0] is message:  # not pushed out meanwhile
                        self._outbox.popleft()
                if self._stopping:
                    await client.publish(f"{prefix}/status", b"offline", qos=1, retain=True)
                    return
                self._news.clear()
                news = asyncio.create_task(self._news.wait())
                try:
                    await asyncio.wait([news, receiving], return_when=asyncio.FIRST_COMPLETED)
                finally:
                    news.cancel()
                if receiving.done():
                    receiving.result()  # raises MqttError when the broker is gone
                    return
        finally:
            receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)

    async def _receive(self, client: aiomqtt.Client) -> None:
        async for message in client.messages:
            payload = message.payload
            if len(payload) > MAX_COMMAND:
                log.warning("mqtt: a command of %d bytes was refused", len(payload))
                continue
            self._on_command(message.topic.value.rpartition("/")[2], payload)
