"""What a streaming vision-language model is to those who drive it: an eye, words, and passes over packed rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from .packed import Packed
from .ring_kv import Part
from .rolling_kv import Budget, Evicted, RollingKv


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as the eye gave it: its tokens between its markers, ready for the language model."""

    tokens: Tensor  # (1, T, d)
    parts: tuple[Part, ...]
    first: int  # the first visual token, after the markers before it
    grid: tuple[int, int]  # rows, columns of the visual tokens, in order
    scores: Tensor | None = None  # (T,) how much each token matters; markers: inf
    deep: tuple[Tensor, ...] = ()  # (T, d) each, added in the first layers (Qwen3's deepstack)
    places: Tensor | None = (
        None  # (n, 3): centre x, y and radius in shares of the picture, of tokens in no grid
    )

    def keep(self, share: float) -> Tensor | None:
        """Indices, in order, of the share of tokens that matter most, markers always; None where all stay.

        Source: HiRED (2408.10945), section 4.2: tokens are dropped before the language model sees them.
        """
        if share >= 1 or self.scores is None:
            return None
        marks = int(self.scores.isinf().sum())
        wanted = marks + max(1, round((len(self.scores) - marks) * share))
        return self.scores.topk(wanted).indices.sort().values


class StreamingVlm(Protocol):
    """Weights and words; all state is in the caches that are passed in. Calls never overlap."""

    name: str
    size: tuple[int, int]  # height, width of the pictures it takes
    system: Tensor  # (S,) ids that every stream starts with
    stop: frozenset[int]  # ids that end an answer
    silence: int | None  # the id whose probability after a picture means that there is nothing to say
    yes_no: tuple[Tensor, Tensor] | None  # ids that begin "yes" and "no": how a standing question is read
    remembers: bool  # its own answers, in the text tier
    whole: bool  # tokens of a picture see each other both ways: it must go in in one piece
    tapped: tuple[int, ...]  # middle layers, whose attention says where an answer looks
    token_bytes: int  # of a cached token, all layers
    shape: tuple[int, int, int]  # layers, key heads, head dim

    def look(self, now: Tensor, before: Tensor) -> list[Picture]:
        """uint8 (B, 3, H, W), and the pictures before them (themselves where there were none)."""
        ...

    def cache(self, budget: Budget, on_evict: Evicted | None = None) -> RollingKv: ...

    def embed(self, ids: Tensor) -> Tensor:
        """(T,) → (1, T, d)."""
        ...

    def run(
        self, x: Tensor, positions: Tensor, packed: Packed, deep: Sequence[tuple[int, Sequence[Tensor]]] = ()
    ) -> Tensor:
        """x (1, T, d) → hidden (T, d). deep: (first token, (n, d) for the first layers) of each picture."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """(n, d) → (n, V)."""
        ...

    def query(self, ids: Tensor, cache: RollingKv) -> Tensor:
        """Mean query vectors of a question, before rotation: (layers, query heads, dim)."""
        ...

    def question(self, text: str) -> Tensor:
        """Ids of a question, up to where the answer begins. Raises: ValueError for words that it does not know."""
        ...

    def closing(self, answer: Sequence[int]) -> Tensor:
        """Ids that end an answer and lead back to watching."""
        ...

    def text(self, ids: Sequence[int]) -> str: ...
