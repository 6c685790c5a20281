"""The toy VLM as the same kind of model that real ones are: it runs in the same passes, caches and stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .packed import Packed, Run
from .ring_kv import RingLayer
from .rolling_kv import Budget, Evicted, RollingKv
from .toy_questions import INDEX, WORDS, encode
from .toy_vlm import CELL_PARTS, THINGS, TOKENS, ToyVlm, load, scene, things
from .toy_world import SIZE
from .vlm_model import Picture

SINKS = 4
WINDOW = 6  # pictures that it was taught to look back on
_ASK, _ANSWER, _END = INDEX["<ask>"], INDEX["<answer>"], INDEX["<end>"]
_RADIUS = 8.5 / SIZE  # of the largest thing


class ToyModel:
    """`StreamingVlm` of the toy. A picture is four things, the scene, and `<look>`, after which it may speak."""

    name = "toy"
    size: tuple[int, int] = (SIZE, SIZE)
    stop: frozenset[int] = frozenset({_END})
    silence: int | None = INDEX["<silence>"]
    whole = remembers = False
    tapped: tuple[int, ...] = (2,)  # it was taught to look there

    def __init__(self, weights: ToyVlm | None = None) -> None:
        self.net = weights or load()
        d = self.net.decoder
        self.system = torch.full((SINKS,), INDEX["<sys>"])
        self.yes_no: tuple[Tensor, Tensor] | None = torch.tensor([INDEX["yes"]]), torch.tensor([INDEX["no"]])
        self.shape = (len(d.blocks), d.kv_heads, d.head_dim)
        self.token_bytes = 2 * 4 * len(d.blocks) * d.kv_heads * d.head_dim

    def look(self, now: Tensor, before: Tensor) -> list[Picture]:
        seen = self.net.eye(now, before)
        slots, whole = things(seen), scene(seen)
        look = self.net.decoder.words.weight[INDEX["<look>"]].expand(len(now), 1, -1)
        tokens = torch.cat((self.net.decoder.picture(slots, whole), look), 1)  # (B, 6, d)
        sure = slots[..., 0]  # (B, 4) how surely each thing is there
        end = sum(CELL_PARTS)
        # a thing's centre was scaled by how surely it is there
        centres = (slots[..., end - 2 : end] / sure[..., None].clamp_min(1e-3)).clamp(-1, 1) * 0.5 + 0.5
        out: list[Picture] = []
        for i in range(len(now)):
            scores = torch.cat((sure[i], torch.tensor([1.0, torch.inf])))
            radii = torch.full((THINGS, 1), _RADIUS)
            places = torch.cat((centres[i], radii), 1)
            out.append(
                Picture(
                    tokens[i : i + 1],
                    (TOKENS + 1,),
                    0,
                    (1, THINGS),
                    scores,
                    places=places * (sure[i, :, None] > 0.3),
                )
            )
        return out

    def cache(self, budget: Budget, on_evict: Evicted | None = None) -> RollingKv:
        layers: list[Any] = [RingLayer(budget.capacity) for _ in self.net.decoder.blocks]
        return RollingKv(self.net.decoder.rope, layers, budget, on_evict)

    def embed(self, ids: Tensor) -> Tensor:
        return self.net.decoder.words(ids)[None]

    def run(
        self, x: Tensor, positions: Tensor, packed: Packed, deep: Sequence[tuple[int, Sequence[Tensor]]] = ()
    ) -> Tensor:
        return self.net.decoder.hidden(x, positions[0], None, packed)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        return self.net.decoder.logits(hidden)

    def query(self, ids: Tensor, cache: RollingKv) -> Tensor:
        d = self.net.decoder
        found: list[Tensor] = []
        width = d.heads * d.head_dim

        def hook(module: object, inputs: object, output: Tensor) -> None:
            found.append(output[0, :, :width].view(-1, d.heads, d.head_dim).mean(0))

        handles = [block.qkv.register_forward_hook(hook) for block in d.blocks]  # type: ignore[union-attr]
        try:
            branch = cache.fork(room=len(ids))
            self.run(self.embed(ids), branch.reserve(len(ids)), Packed([Run(branch, len(ids))]))
        finally:
            for handle in handles:
                handle.remove()
        return torch.stack(found)

    def question(self, text: str) -> Tensor:
        return torch.tensor([_ASK, *encode(text), _ANSWER])

    def closing(self, answer: Sequence[int]) -> Tensor:
        return torch.tensor([_END])

    def text(self, ids: Sequence[int]) -> str:
        return " ".join(WORDS[i] for i in ids if i != _END)
