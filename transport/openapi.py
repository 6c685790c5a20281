"""The API's OpenAPI 3.1 description, made from the table of routes: what is served is what is described."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ..pipeline.tokens import Scope
from .api_models import Error

_PLACE = re.compile(r"{(\w+)}")


@dataclass(frozen=True, slots=True)
class Route:
    """takes, gives: the model of the body and of the answer, or its content type ("": none). refuses: its 4xx
    answers beside those that all have. scopes: a token with one of them, or admin, may call it."""

    method: str
    path: str
    about: str
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    gives: type[BaseModel] | str
    takes: type[BaseModel] | str | None = None
    refuses: tuple[int, ...] = ()
    status: int = 200
    open: bool = False  # served without a token
    scopes: tuple[Scope, ...] = ()


REFUSALS = {
    400: "the body or a parameter is wrong",
    401: "a token is needed",
    403: "a foreign Host or Origin, or the token's scope does not reach this far",
    404: "there is no such thing",
    409: "that cannot be done here or now",
    413: "the body is too large",
    410: "the session has ended",
    412: "If-Match names another connection",
    415: "the content type is not the one that is taken",
    422: "that is not supported: an ICE restart",
    428: "If-Match is missing",
    429: "too many at a time, or too many requests a second",
    503: "not ready, or shutting down",
}


def describe(routes: Iterable[Route], version: str) -> dict[str, Any]:
    """The whole document."""
    routes = list(routes)
    models = {m for r in routes for m in (r.takes, r.gives) if isinstance(m, type)} | {Error}
    _, schemas = models_json_schema(
        [(m, "validation") for m in sorted(models, key=lambda m: m.__name__)],
        ref_template="#/components/schemas/{model}",
    )
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Penstock", "version": version, "description": "Steers a running daemon."},
        "paths": paths,
        "components": {
            "schemas": schemas.get("$defs", {}),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _operation(route: Route) -> dict[str, Any]:
    places = _PLACE.findall(route.path)
    refuses = {*route.refuses}
    if not route.open:
        refuses |= {401, 403}
    refuses.add(429)
    if places:
        refuses.add(404)
    if route.takes is not None:
        refuses |= {400, 413, 415}
    content = (
        {}
        if route.gives == ""
        else (
            {route.gives: {"schema": {"type": "string"}}}
            if isinstance(route.gives, str)
            else {"application/json": {"schema": _ref(route.gives)}}
        )
    )
    operation: dict[str, Any] = {
        "summary": route.about,
        "description": f"Scope: {' or '.join(route.scopes)}." if route.scopes else "No token is needed.",
        "operationId": f"{route.method.lower()}_{re.sub(r'[^a-z]+', '_', route.path).strip('_')}",
        "parameters": [
            {"name": p, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            for p in places
        ],
        "responses": {str(route.status): {"description": "done"} | ({"content": content} if content else {})}
        | {
            str(status): {
                "description": REFUSALS[status],
                "content": {"application/json": {"schema": _ref(Error)}},
            }
            for status in sorted(refuses)
        },
    }
    if route.takes is not None:
        operation["requestBody"] = {
            "required": True,
            "content": (
                {route.takes: {"schema": {"type": "string"}}}
                if isinstance(route.takes, str)
                else {"application/json": {"schema": _ref(route.takes)}}
            ),
        }
    return operation


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}
