"""Requests made from the API's own description: each answer must be one that it describes."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from test_api import background

schemathesis = pytest.importorskip("schemathesis", reason="needs the package schemathesis")

pytestmark = [pytest.mark.net, pytest.mark.slow]


def test_every_answer_is_as_described_and_none_is_a_server_error():
    with background() as url:
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        seen: set[str] = set()
        for found in schema.get_all_operations():
            operation = found.ok()
            if operation.path == "/events":  # its answer has no end
                continue

            @given(case=operation.as_strategy())
            @settings(
                max_examples=15,
                deadline=None,
                database=None,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
            )
            def check(case: object) -> None:
                case.call_and_validate()  # type: ignore[attr-defined]

            check()
            seen.add(operation.label)
    assert "POST /sessions/{id}/params" in seen
