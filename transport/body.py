"""A request's body as text."""

from __future__ import annotations

from aiohttp import web


async def text_of(request: web.Request, kind: str) -> str:
    """kind: the content type that is taken. Raises: HTTPUnsupportedMediaType for another, HTTPBadRequest for a
    charset that is unknown or does not fit."""
    if request.content_type != kind:
        raise web.HTTPUnsupportedMediaType(
            text=f"the content type is {request.content_type[:80]!r}; {kind} is taken"
        )
    try:
        return await request.text()
    except (UnicodeDecodeError, LookupError) as e:
        raise web.HTTPBadRequest(text=f"the body is no text: {str(e)[:120]}") from e
