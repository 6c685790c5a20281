"""HTTP to endpoints that speak OpenAI's protocols: how a connection is opened, and how its failures are told."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

import aiohttp

from ..pipeline.clock import SECOND


class EndpointFailed(Exception):
    """The endpoint gave no whole answer. The words never hold its text, the key or the address."""

    def __init__(self, reason: str, retry_after: int = 0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after  # ns that the endpoint asks to be left alone; 0 when it asks nothing


def open_http(key: str, connect: int, **headers: str) -> aiohttp.ClientSession:
    """key: sent as the bearer; empty for none. connect: the longest time to connect in, ns."""
    headers["Accept-Encoding"] = "identity"
    if key:
        headers["Authorization"] = f"Bearer {key}"
    timeout = aiohttp.ClientTimeout(total=None, connect=connect / SECOND)
    return aiohttp.ClientSession(headers=headers, timeout=timeout)


def check_status(response: aiohttp.ClientResponse) -> None:
    """Raises: EndpointFailed for all but 200, with the time that a Retry-After asks for."""
    if response.status != 200:
        seconds = response.headers.get("Retry-After", "")
        retry_after = (
            int(seconds) * SECOND if seconds.isascii() and seconds.isdigit() and len(seconds) < 7 else 0
        )
        raise EndpointFailed(f"HTTP {response.status}", retry_after)


@contextmanager
def failures_in_words(connect: int, late: Callable[[], str], *telling: type[Exception]) -> Generator[None]:
    """Whatever fails in a request is an EndpointFailed. connect: as given to `open_http`; late: words for any other
    time that is over; telling: exceptions whose own words are safe to pass on."""
    try:
        yield
    except TimeoutError as e:
        if isinstance(e, aiohttp.ClientError):
            raise EndpointFailed(f"no connection in {connect / SECOND:g} s") from e
        raise EndpointFailed(late()) from e
    except aiohttp.ClientConnectorError as e:
        raise EndpointFailed(f"no connection ({type(e.os_error).__name__})") from e
    except aiohttp.ClientError as e:
        raise EndpointFailed(f"the connection broke ({type(e).__name__})") from e
    except telling as e:
        raise EndpointFailed(str(e)) from e
