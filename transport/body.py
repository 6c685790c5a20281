"""A request's body as text."""

from __future__ import annotations

from aiohttp import web


async def text_of(request: web.Request) -> str:
    """Raises: HTTPBadRequest for a charset that is unknown or does not fit."""
    try:
        return await request.text()
    except (UnicodeDecodeError, LookupError) as e:
        raise web.HTTPBadRequest(text=f"the body is no text: {str(e)[:120]}") from e
