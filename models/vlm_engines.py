"""A streaming VLM behind one small face: many sessions that watch, and answer while they watch.

`RollingEngine` has a cache per session, with text tier and memory; `StaticEngine` has them as rows of one batch,
so that a step costs one forward pass for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .ring_kv import Part, count
from .rolling_kv import Branch, RollingKv
from .static_ring import StaticRing


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as the vision tower gave it. at: ns. scores: (T,) how much each token matters (HiRED), if known."""

    at: int
    tokens: Tensor  # (1, T, d)
    parts: tuple[Part, ...]
    scores: Tensor | None = None


class Engine(Protocol):
    """What the scheduler drives. Calls never overlap."""

    def open(self, session: str) -> None: ...

    def close(self, session: str) -> None: ...

    def watch(self, pictures: Mapping[str, Picture]) -> None:
        """Take in one picture of each of these sessions."""
        ...

    def say(self, words: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """More ids (T,), the same count for all, on each session's answer → logits (V,) after the last."""
        ...

    def drop(self, session: str) -> None:
        """The session's answer has ended: forget its words."""
        ...


@dataclass(frozen=True, slots=True)
class Language:
    """A decoder: run(x (B, T, d), positions, cache, mask) → hidden (B, T, d); embed ids; head → logits."""

    run: Callable[[Tensor, Tensor, Any, Any], Tensor]
    embed: Callable[[Tensor], Tensor]
    head: Callable[[Tensor], Tensor]


def transformers_language(text_model: Any, head: Callable[[Tensor], Tensor]) -> Language:
    """A transformers text model, unmodified."""

    def run(x: Tensor, positions: Tensor, cache: Any, mask: Any) -> Tensor:
        out = text_model(
            inputs_embeds=x,
            position_ids=positions,
            cache=cache,
            use_cache=True,
            attention_mask=mask,
        )
        return out.last_hidden_state

    return Language(run, text_model.get_input_embeddings(), head)


def strongest(scores: Tensor, share: float) -> Tensor:
    """Indices, in order, of the share of tokens that matter most; at least one.

    Source: HiRED (2408.10945), section 4.2: tokens are dropped before the language model sees them.
    """
    keep = max(1, round(len(scores) * share))
    return scores.topk(keep).indices.sort().values


class RollingEngine:
    """One `RollingKv` a session. `chunk`: no forward pass takes in more picture tokens than this.

    keep: the share of picture tokens that is taken in where a picture has scores; a rung of the degrade ladder.
    """

    def __init__(
        self,
        language: Language,
        make_cache: Callable[[], RollingKv],
        system: Tensor,
        *,
        chunk: int = 256,
        room: int = 256,
    ) -> None:
        self.language, self.make_cache, self.system = language, make_cache, system
        self.chunk, self.room, self.keep = chunk, room, 1.0
        self.caches: dict[str, RollingKv] = {}
        self._branches: dict[str, Branch] = {}

    @torch.inference_mode()
    def open(self, session: str) -> None:
        cache = self.make_cache()
        x = self.language.embed(self.system)[None]
        self.language.run(x, cache.reserve("pinned", x.shape[1]), cache, None)
        cache.pin()
        self.caches[session] = cache

    def close(self, session: str) -> None:
        self.caches.pop(session, None)
        self.drop(session)

    @torch.inference_mode()
    def watch(self, pictures: Mapping[str, Picture]) -> None:
        for session, picture in pictures.items():
            cache, tokens, keep = self.caches[session], picture.tokens, None
            if self.keep < 1 and picture.scores is not None:
                keep = strongest(picture.scores, self.keep)
                tokens = tokens[:, keep]
            positions = cache.reserve("frame", *picture.parts, tag=picture.at, keep=keep)
            for a in range(0, tokens.shape[1], self.chunk):
                b = a + self.chunk
                self.language.run(tokens[:, a:b], positions[..., a:b], cache, None)

    @torch.inference_mode()
    def say(self, words: Mapping[str, Tensor]) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for session, ids in words.items():
            if session not in self._branches:
                self._branches[session] = self.caches[session].fork(room=self.room)
            branch = self._branches[session]
            hidden = self.language.run(self.language.embed(ids)[None], branch.reserve(len(ids)), branch, None)
            out[session] = self.language.head(hidden[0, -1])
        return out

    def drop(self, session: str) -> None:
        self._branches.pop(session, None)

    @torch.inference_mode()
    def remember(self, session: str, ids: Tensor) -> None:
        """Put question and answer into the text tier."""
        cache = self.caches[session]
        self.language.run(self.language.embed(ids)[None], cache.reserve("text", len(ids)), cache, None)


class StaticEngine:
    """All sessions as rows of one `StaticRing`; `mask_of` brings its mask into the model's form."""

    def __init__(
        self, language: Language, ring: StaticRing, system: Tensor, mask_of: Callable[[Tensor], Any]
    ) -> None:
        self.language, self.ring, self.mask_of = language, ring, mask_of
        self.rows: dict[str, int] = {}
        self._sealed = False
        self._system = system

    @torch.inference_mode()
    def open(self, session: str) -> None:
        """Raises: ValueError when every row is taken."""
        if not self._sealed:
            x = self.language.embed(self._system)[None].expand(self.ring.rows, -1, -1)
            positions, mask = self.ring.reserve_sinks()
            self.language.run(x, positions, self.ring, self.mask_of(mask))
            self.ring.seal()
            self._sealed = True
        free = set(range(self.ring.rows)) - set(self.rows.values())
        if not free:
            raise ValueError(f"all {self.ring.rows} rows are taken")
        self.rows[session] = min(free)

    @torch.inference_mode()
    def close(self, session: str) -> None:
        row = self.rows.pop(session, None)
        if row is not None:
            self.ring.clear(row)

    @torch.inference_mode()
    def watch(self, pictures: Mapping[str, Picture]) -> None:
        first = next(iter(pictures.values())).tokens
        x = first.new_zeros(self.ring.rows, first.shape[1], first.shape[2])
        for session, picture in pictures.items():
            if count(picture.parts) != self.ring.frame_tokens:
                raise ValueError(f"a picture of {picture.parts} for a static ring of {self.ring.frame}")
            x[self.rows[session]] = picture.tokens[0]
        positions, mask = self.ring.reserve_frame([self.rows[s] for s in pictures])
        self.language.run(x, positions, self.ring, self.mask_of(mask))

    @torch.inference_mode()
    def say(self, words: Mapping[str, Tensor]) -> dict[str, Tensor]:
        n = len(next(iter(words.values())))
        ids = torch.zeros(self.ring.rows, n, dtype=torch.long, device=self.ring.device)
        for session, own in words.items():
            ids[self.rows[session]] = own
        positions, mask = self.ring.reserve_words([self.rows[s] for s in words], n)
        hidden = self.language.run(self.language.embed(ids), positions, self.ring, self.mask_of(mask))
        logits = self.language.head(hidden[:, -1])
        return {session: logits[self.rows[session]] for session in words}

    @torch.inference_mode()
    def drop(self, session: str) -> None:
        if session in self.rows:
            self.ring.drop_words(self.rows[session])
