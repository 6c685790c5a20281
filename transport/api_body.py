"""A request's JSON body as a model, and an answer as JSON."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from ..pipeline.faults import first_in_words
from .body import text_of

M = TypeVar("M", bound=BaseModel)


async def read(request: web.Request, model: type[M]) -> M:
    """The body as that model. Raises: HTTPBadRequest, HTTPUnsupportedMediaType, in words."""
    try:
        return model.model_validate(json.loads(await text_of(request, "application/json")))
    except ValidationError as e:
        raise web.HTTPBadRequest(text=first_in_words(e, tell=False, nowhere="body")) from e
    except (ValueError, RecursionError) as e:
        raise web.HTTPBadRequest(text="the body is not JSON in UTF-8") from e


def json_response(data: dict[str, Any], status: int = 200) -> web.Response:
    return web.json_response(data, status=status, dumps=lambda d: json.dumps(d, default=str))
