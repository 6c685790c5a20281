"""Watching and answering, many sessions in one forward pass.

    Take    a piece of a picture, or of remembered text, into a session's rolling cache
    Say     a piece of a question, or one word of an answer, on a branch of it

`forward` may be run again with the same jobs, or its results be thrown away: what it wrote lies beyond what
counts, and only `commit` moves that. Pictures never wait for answers, nor the other way round: each pass takes
bounded pieces of any of them.

Source: ReKV (2503.00540) for recalled pictures; chunked prefill: Sarathi-Serve (2403.02310).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from .decider import p_silence
from .packed import Packed, Run
from .retrieval_store import AtRandom, MeanKey, Recent, RetrievalStore, Scorer
from .rolling_kv import Branch, Budget
from .vlm_memory import Memory
from .vlm_model import Picture, StreamingVlm

SCORERS: dict[str, type[Scorer]] = {"mean_key": MeanKey, "recent": Recent, "random": AtRandom}


class VlmSession:
    """One stream's state. Close it: its store is a file."""

    def __init__(self, model: StreamingVlm, memory: Memory) -> None:
        self.memory = memory
        self.before: Tensor | None = None  # (3, H, W), the last picture
        self.newest: Picture | None = None  # as it was taken in last, whole
        self.kept: Tensor | None = None  # which of its tokens
        self.store: RetrievalStore | None = None
        self.started = False
        layers, heads, dim = model.shape
        budget = budget_of(memory, model)
        if memory.blocks:
            # a picture with its markers; one that is longer is not stored
            self.store = RetrievalStore(
                layers=layers, heads=heads, tokens=budget.tokens // 2, dim=dim, slots=memory.blocks,
                scorer=SCORERS[memory.scorer](),
            )  # fmt: skip
        self.cache = model.cache(budget, self.store.keep_evicted if self.store is not None else None)

    @property
    def nbytes(self) -> int:
        return self.cache.nbytes

    def close(self) -> None:
        if self.store is not None:
            self.store.close()


def budget_of(memory: Memory, model: StreamingVlm) -> Budget:
    """Its tokens, or as many as its bytes allow. Raises: ValueError when those hold next to nothing."""
    tokens = memory.tokens
    if not memory.limit:
        return Budget(tokens, memory.text, rebase_at=max(1 << 15, 2 * tokens))
    twice = len(model.system) * model.token_bytes  # pinned: kept as it was, too
    most = Budget.from_bytes(max(0, memory.limit - twice), model.token_bytes, memory.text)
    if most.tokens <= tokens:
        return most
    return replace(most, tokens=tokens, slack=min(tokens, most.capacity - tokens))


@dataclass(slots=True, eq=False)
class Talk:
    """One answer: its branch, made when its first piece runs. Drop it and nothing is left of it."""

    session: VlmSession
    branch: Branch | None = None
    fill: int = 0  # visible tokens that count
    position: int = 0
    sight: Sight | None = None  # where it has the newest picture


@dataclass(slots=True, eq=False)
class Take:
    """A picture (image uint8 (3, H, W)) or text (ids). `done` tokens of it are in."""

    session: VlmSession
    image: Tensor | None = None
    ids: Tensor | None = None
    at: int = 0  # ns, the picture's tag
    share: float = 1.0  # of its tokens that are taken in
    merged: Tensor | None = None  # the picture before this one, (3, H, W), that is taken in with it as one
    done: int = 0
    picture: Picture | None = None
    kept: Tensor | None = None
    x: Tensor | None = None  # (1, T, d) what goes in
    positions: Tensor | None = None  # None until its place is reserved


@dataclass(slots=True, eq=False)
class Say:
    """More ids on an answer's branch. room: for how many tokens the answer may have in all."""

    talk: Talk
    ids: Tensor  # (T,)
    room: int = 256
    tap: bool = False  # say where its last token looks


Job: TypeAlias = Take | Say


@dataclass(frozen=True, slots=True)
class Result:
    """Of one job. logits (V,): of the next word, after ids or after a whole picture; silence: P(nothing to say)."""

    tokens: int
    logits: Tensor
    word: int  # the likeliest next one
    p: float  # its probability
    silence: float | None = None
    looks: Tensor | None = None  # (K,) attention over all that the branch sees, layers and heads averaged


@dataclass(slots=True)
class Runner:
    """Drives one model. `chunk`: tokens of one job in one pass."""

    model: StreamingVlm
    chunk: int = 256

    def forward(self, jobs: Sequence[Job]) -> list[Result]:
        """One pass over a piece of each job; jobs of one session must be of different kinds."""
        with torch.inference_mode():
            self._open([j.session if isinstance(j, Take) else j.talk.session for j in jobs])
            self._look([j for j in jobs if isinstance(j, Take) and j.x is None])
            pieces = [self._piece(j) for j in jobs]
            runs = [p[2] for p in pieces]
            packed = Packed(runs, self.model.tapped)
            deep, at = list[tuple[int, Sequence[Tensor]]](), 0
            for run, piece in zip(runs, pieces, strict=True):
                if piece[3]:
                    deep.append((at, piece[3]))
                at += run.tokens
            x = torch.cat([p[0] for p in pieces], 1)
            positions = torch.cat([p[1] for p in pieces], -1)
            hidden = self.model.run(x, positions.to(x.device), packed, deep)  # (T, d)
            ends = torch.tensor([r.tokens for r in runs]).cumsum(0) - 1
            logits = self.model.logits(hidden[ends.to(hidden.device)]).float()
            best, words = logits.max(-1)
            likely = (best - logits.logsumexp(-1)).exp().tolist()
            top = zip(words.tolist(), likely, strict=True)
            return [
                self._result(j, r, logits[i], word, p, packed.seen[i])
                for i, (j, r, (word, p)) in enumerate(zip(jobs, runs, top, strict=True))
            ]

    def commit(self, job: Job, result: Result) -> bool:
        """The pass counts. True when the job has ended: a picture or text is in, ids are on the branch."""
        if isinstance(job, Say):
            assert job.talk.branch is not None
            job.talk.fill, job.talk.position = job.talk.branch.visible, job.talk.branch.position
            return True
        job.done += result.tokens
        assert job.x is not None
        if job.done < job.x.shape[1]:
            return False
        if job.image is not None:
            job.session.before, job.session.newest, job.session.kept = job.image, job.picture, job.kept
        return True

    # ------------------------------------------------------------ pieces of work

    def _open(self, sessions: Sequence[VlmSession]) -> None:
        for session in sessions:
            if session.started:
                continue
            cache, x = session.cache, self.model.embed(self.model.system)
            if cache.unfinished:
                cache.abandon()
            packed = Packed([Run(cache, x.shape[1])])
            self.model.run(x, cache.reserve("pinned", x.shape[1]).to(x.device), packed)
            cache.pin()
            session.started = True

    def _look(self, takes: Sequence[Take]) -> None:
        """Turn images and ids into what goes in: one pass of the eye for all pictures."""
        for take in takes:
            if take.ids is not None:
                take.x = self.model.embed(take.ids)
        seeing = [t for t in takes if t.image is not None]
        if not seeing:
            return
        now: list[Tensor] = []
        before: list[Tensor] = []
        for t in seeing:
            assert t.image is not None
            last = t.session.before
            # a camera that has changed its size has nothing before it, and nothing to be merged with
            now.append(t.image)
            before.append(t.image if last is None or last.shape != t.image.shape else last)
            if t.merged is not None and t.merged.shape != t.image.shape:
                t.merged = None
            if t.merged is not None:
                now.append(t.merged)
                before.append(t.merged)
        pictures = iter(self.model.look(torch.stack(now), torch.stack(before)))
        for t in seeing:
            picture = next(pictures)
            tokens = picture.tokens
            if t.merged is not None:
                tokens = (tokens + next(pictures).tokens) / 2
            t.picture, t.kept = picture, picture.keep(t.share)
            t.x = tokens if t.kept is None else tokens[:, t.kept]

    def _piece(self, job: Job) -> tuple[Tensor, Tensor, Run, Sequence[Tensor]]:
        """What one job adds to the pass: x, positions, its run, its deepstack."""
        if isinstance(job, Say):
            branch = self._branch(job)
            x = self.model.embed(job.ids)
            positions = branch.reserve(len(job.ids))
            return x, positions, Run(branch, len(job.ids), tap=job.tap), ()
        assert job.x is not None
        cache = job.session.cache
        if job.positions is None:
            if cache.unfinished:  # a picture that was given up half-way
                cache.abandon()
            most = job.session.memory.pictures
            while most and job.picture and sum(s.kind == "frame" for s in cache.window) >= most:
                cache.evict_oldest()
            parts = job.picture.parts if job.picture else (job.x.shape[1],)
            kind = "frame" if job.picture else "text"
            job.positions = cache.reserve(kind, *parts, tag=job.at, keep=job.kept)
        cache.rewind(job.done)
        n = job.x.shape[1] - job.done
        whole = (0, 0)
        if job.picture is not None and self.model.whole:
            rows, columns = job.picture.grid
            after = job.picture.tokens.shape[1] - job.picture.first - rows * columns
            whole = (job.picture.first, n - after)
        else:
            n = min(n, self.chunk)
        piece = slice(job.done, job.done + n)
        deep: Sequence[Tensor] = ()
        if job.picture and job.picture.deep:
            deep = [(d if job.kept is None else d[job.kept])[piece] for d in job.picture.deep]
        return job.x[:, piece], job.positions[..., piece], Run(cache, n, whole=whole), deep

    def _branch(self, job: Say) -> Branch:
        talk = job.talk
        if talk.branch is None or not talk.fill:
            session = talk.session
            blocks: list[tuple[Tensor, int]] = []
            if session.store is not None and len(session.store) and session.memory.recall:
                query = self.model.query(job.ids, session.cache)
                found = session.store.find(query, session.memory.recall)
                blocks = session.store.get(found)
            talk.branch = session.cache.fork(blocks, room=job.room)
            talk.fill, talk.position = talk.branch.visible, talk.branch.position
            talk.sight = newest_sight(session, talk.branch)
        talk.branch.rewind(talk.fill, talk.position)
        return talk.branch

    def _result(self, job: Job, run: Run, logits: Tensor, word: int, p: float, seen: list[Tensor]) -> Result:
        if isinstance(job, Say):
            looks = torch.stack(seen).mean(0) if seen else None
            return Result(run.tokens, logits, word, p, looks=looks)
        assert job.x is not None
        silence = None
        if (
            self.model.silence is not None
            and job.picture is not None
            and job.done + run.tokens == job.x.shape[1]
        ):
            silence = float(p_silence(logits, self.model.silence))
        return Result(run.tokens, logits, word, p, silence)


@dataclass(frozen=True, slots=True)
class Sight:
    """The newest whole picture as a branch sees it: its `tokens` from token `start` on."""

    start: int
    tokens: int
    picture: Picture
    kept: Tensor | None

    def weights(self, looks: Tensor) -> Tensor:
        """An answer's attention (K,) → what fell on each of the picture's visual tokens, (n,).

        Sinks, text and older pictures are left out; what each token gets alike, too.
        """
        full = torch.zeros(self.picture.tokens.shape[1])
        own = looks[self.start : self.start + self.tokens].float().cpu()
        full[self.kept if self.kept is not None else slice(0, self.tokens)] = own
        rows, columns = self.picture.grid
        full = full[self.picture.first : self.picture.first + rows * columns]
        return (full - full.median()).clamp_min(0)


def newest_sight(session: VlmSession, branch: Branch) -> Sight | None:
    """Where a fresh branch has the newest picture; None when it has none."""
    cache, at = session.cache, 0
    frames: list[tuple[int, int]] = []
    for segment in cache.window:
        if segment.kind == "frame":
            frames.append((at, segment.tokens))
        at += segment.tokens
    if cache.unfinished and cache.window and cache.window[-1].kind == "frame":
        frames.pop()
    if not frames or session.newest is None:
        return None
    present = cache.layers[0].w1 - cache.layers[0].w0
    return Sight(branch.visible - present + frames[-1][0], frames[-1][1], session.newest, session.kept)


def importance(sight: Sight, looks: Tensor) -> tuple[Tensor, float]:
    """Where an answer looked: weights over the picture (H, W), and how concentrated they are, 0-1.

    Concentration: one minus the entropy of the weights against that of even ones.
    """
    weights = sight.weights(looks)
    total = float(weights.sum())
    n = len(weights)
    if total <= 0 or n < 2:
        return torch.zeros(sight.picture.grid), 0.0
    share = weights / total
    spread = float(-(share * share.clamp_min(1e-9).log()).sum()) / math.log(n)
    places = sight.picture.places
    if places is None:
        return weights.view(sight.picture.grid), 1 - spread
    return draw(weights, places), 1 - spread


def draw(weights: Tensor, places: Tensor) -> Tensor:
    """Weights (n,) of things at places (n, 3) → over the picture (36, 64)."""
    rows, columns = torch.meshgrid(
        (torch.arange(36) + 0.5) / 36, (torch.arange(64) + 0.5) / 64, indexing="ij"
    )
    drawn = torch.zeros(36, 64)
    for weight, (x, y, radius) in zip(weights.tolist(), places.tolist(), strict=True):
        inside = (columns - x).abs().maximum((rows - y).abs()) <= radius
        drawn = drawn.maximum(inside * weight)
    return drawn
