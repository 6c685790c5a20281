"""HTTP to endpoints that speak OpenAI's protocols: how a connection is opened, and how its failures are told."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

import aiohttp

from ..pipeline.clock import SECOND

_FOR_ALL = (401, 403, 404, 408, 429)  # of the client errors: key, address, load; the rest is this request's


class EndpointFailed(Exception):
    """The endpoint gave no whole answer. The words never hold its text, the key or the address."""

    def __init__(self, reason: str, retry_after: int = 0, *, for_all: bool = False) -> None:
        super().__init__(reason)
        self.for_all = for_all  # other requests would meet it too
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
        for_all = response.status >= 500 or response.status in _FOR_ALL
        raise EndpointFailed(f"HTTP {response.status}", retry_after, for_all=for_all)


@contextmanager
def failures_in_words(connect: int, late: Callable[[], str], *telling: type[Exception]) -> Generator[None]:
    """Whatever fails in a request is an EndpointFailed. connect: as given to `open_http`; late: words for any other
    time that is over; telling: exceptions whose own words are safe to pass on."""
    try:
        yield
    except TimeoutError as e:
        if isinstance(e, aiohttp.ClientError):
            raise EndpointFailed(f"no connection in {connect / SECOND:g} s", for_all=True) from e
        raise EndpointFailed(late(), for_all=True) from e
    except aiohttp.ClientConnectorError as e:
        raise EndpointFailed(f"no connection ({type(e.os_error).__name__})", for_all=True) from e
    except aiohttp.ClientError as e:
        raise EndpointFailed(f"the connection broke ({type(e).__name__})", for_all=True) from e
    except telling as e:
        raise EndpointFailed(str(e)) from e
