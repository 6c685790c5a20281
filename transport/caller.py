"""Who makes a request, and what that one may do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from ..pipeline.tokens import Scope

SCOPES: frozenset[Scope] = frozenset(get_args(Scope))


@dataclass(frozen=True, slots=True)
class Caller:
    """name: of its token; empty where none is asked for. sessions: at a time; 0: the server's own limit.
    longest: ns that a session of it may last; 0: the server's own limit."""

    address: str = ""
    name: str = ""
    scopes: frozenset[Scope] = SCOPES
    sessions: int = 0
    longest: int = 0

    def may(self, *any_of: Scope) -> bool:
        """Does one of these scopes, or admin, cover it?"""
        return "admin" in self.scopes or not self.scopes.isdisjoint(any_of)


LOCAL = Caller()
