"""ChatHistory: bounded, alternating, the latest kept."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.stages.chat_history import ChatHistory, Role


def test_a_question_without_an_answer_joins_the_next() -> None:
    history = ChatHistory(4, 1000)
    history.add("user", "one")
    history.add("assistant", " ")
    history.add("user", "two")
    history.add("assistant", "three")
    assert history.messages("be kind") == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "one\ntwo"},
        {"role": "assistant", "content": "three"},
    ]


ROLES: list[Role] = ["user", "assistant"]


@given(st.lists(st.tuples(st.sampled_from(ROLES), st.text(max_size=40))))
@settings(max_examples=100, deadline=None)
def test_it_alternates_within_its_bounds(said: list[tuple[Role, str]]) -> None:
    history = ChatHistory(3, 50)
    for role, text in said:
        history.add(role, text)
        roles = [m["role"] for m in history.messages()]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"] * (len(roles) % 2)
        assert len(roles) <= 6
        assert history.nbytes <= 50
        if role == "user" and text.strip():
            assert roles[-1] == "user"  # there is always something to answer
