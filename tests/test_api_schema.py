"""Requests made from the API's own description: each answer must be one that it describes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_api import background

schemathesis = pytest.importorskip("schemathesis", reason="needs the package schemathesis")

from schemathesis.specs.openapi.checks import positive_data_acceptance  # noqa: E402 - only where it is there

pytestmark = [pytest.mark.net, pytest.mark.slow]

SDP = ("/session", "/whip/", "/whep/")


@schemathesis.serializer("application/sdp", "application/trickle-ice-sdpfrag")
def plain_text(_: Any, value: object) -> bytes:
    return str(value).encode()


@settings(
    max_examples=15,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(data=st.data())
def requests(operation: Any, data: st.DataObject) -> None:
    """Some requests to one operation. A text is all that a description can ask for; that it is SDP is more."""
    excluded = [positive_data_acceptance] if operation.path.startswith(SDP) else []
    data.draw(operation.as_strategy()).call_and_validate(excluded_checks=excluded)


def test_every_answer_is_as_described_and_none_is_a_server_error():
    with background() as url:
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        seen: set[str] = set()
        for found in schema.get_all_operations():
            operation = found.ok()
            if operation.path == "/events":  # its answer has no end
                continue
            requests(operation)
            seen.add(operation.label)
    assert {"POST /sessions/{id}/params", "PATCH /whip/{graph}/{id}", "POST /session"} <= seen
