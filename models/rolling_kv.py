"""A bounded KV cache for streams without end: sinks and pinned text, a text tier, and a window of pictures.

    reserve(kind, parts) ─► positions ─► the model's forward calls update() once a layer
       │ over budget: the oldest of the window leaves: text graduates to the prefix, a picture is handed
       │              to on_evict; the prefix is stamped again before the window
       └ positions near rebase_at: all are turned back (only differences matter to RoPE)

The prefix is kept pristine, each segment at position 0, and every stamp rotates that copy once: turning the
same keys again and again would let bf16 errors grow without bound.

Source: StreamingLLM (2309.17453); StreamingVLM (2510.09608) for the tiers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .ring_kv import Kind, Part, RingLayer, Segment, count, lay_out
from .rope import Rotator


@dataclass(frozen=True, slots=True)
class Budget:
    """Bounds of a cache, in tokens. `tokens` holds all that is visible; `text` of it the text tier."""

    tokens: int
    text: int = 0  # 0: text leaves like pictures do
    slack: int = 0  # free slots between two moves to the front; 0 means as many as tokens
    rebase_at: int = 1 << 15  # positions

    def __post_init__(self) -> None:
        if self.tokens < 1 or not 0 <= self.text < self.tokens:
            raise ValueError(f"budget of {self.tokens} tokens with {self.text} of text; text must be less")
        if self.rebase_at < 2 * self.tokens:
            raise ValueError(f"rebase_at {self.rebase_at} is under twice the budget of {self.tokens} tokens")

    @property
    def capacity(self) -> int:
        return self.tokens + (self.slack or self.tokens)

    @classmethod
    def from_bytes(cls, limit: int, token_bytes: int, text: int = 0) -> Budget:
        """The largest budget whose buffers and pristine prefix stay under `limit` bytes.

        token_bytes: 2 · layers · kv_heads · head_dim · bytes of the dtype. Raises: ValueError.
        """
        slots = limit // token_bytes - text  # the text tier is there twice: stamped and pristine
        tokens = slots * 4 // 5
        if tokens <= text:
            raise ValueError(f"{limit} bytes hold {max(0, slots)} tokens of {token_bytes}; text wants {text}")
        return cls(tokens, text, slack=slots - tokens, rebase_at=max(1 << 15, 2 * tokens))


class Branch:
    """A cache to answer on while the stream goes on: what was visible at the fork, plus new tokens."""

    layer_type: type[RingLayer] = RingLayer

    def __init__(self, axes: int, layers: list[Any], position: int) -> None:
        self.axes, self.layers, self.position = axes, layers, position

    @property
    def visible(self) -> int:
        return self.layers[0].w1 - self.layers[0].lo

    def rewind(self, tokens: int, position: int) -> None:
        """Forget all after the first `tokens` visible ones; the next one is at `position`."""
        self.position = position
        for layer in self.layers:
            layer.w1 = layer.lo + tokens

    def reserve(self, tokens: int) -> Tensor:
        """Positions of the next `tokens` text tokens. Raises: ValueError when the branch is full."""
        if self.layers[0].w1 + tokens > self.layers[0].capacity:
            raise ValueError(f"{tokens} more tokens do not fit: the branch was forked with too little room")
        positions, advance = lay_out((tokens,), self.axes, self.position)
        self.position += advance
        return positions

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        return self.layers[layer].append(keys, values)

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)


Evicted = Callable[["RollingKv", Segment], None]


class RollingKv:
    """The cache itself; `RollingCache` is the same for transformers' models."""

    layer_type: type[RingLayer] = RingLayer
    branch_type: type[Branch] = Branch

    def __init__(
        self, rope: Rotator, layers: list[Any], budget: Budget, on_evict: Evicted | None = None
    ) -> None:
        self.rope, self.layers, self.budget, self.on_evict = rope, layers, budget, on_evict
        self.prefix: list[Segment] = []
        self.window: list[Segment] = []
        self.pristine: list[tuple[Tensor, Tensor]] = []  # a layer: keys at position 0, values (B, H, S, D)
        self.next_position = 0
        self.rebases = self.moves = 0

    # ------------------------------------------------------------ what is inside

    @property
    def prefix_tokens(self) -> int:
        return sum(s.tokens for s in self.prefix)

    @property
    def window_tokens(self) -> int:
        return sum(s.tokens for s in self.window)

    @property
    def visible(self) -> int:
        """Tokens that attention sees."""
        return self.layers[0].w1 - self.layers[0].lo

    @property
    def nbytes(self) -> int:
        """Buffers and pristine prefix."""
        return sum(x.nbytes for x in self.layers) + sum(k.nbytes + v.nbytes for k, v in self.pristine)

    # ------------------------------------------------------------ taking in

    def reserve(
        self,
        kind: Kind,
        *parts: Part,
        tag: str | int | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Make room for a segment; its position_ids, for the forward pass that must follow.

        keep: only these of its tokens (indices in order) are taken in, at the places that they have in the whole.
        Raises: ValueError when it can never fit; RuntimeError when the last forward pass did not end.
        """
        n = count(parts) if keep is None else len(keep)
        if self.layers[-1].w1 - self.layers[-1].w0 != self.window_tokens:
            raise RuntimeError("the forward pass of the last reserve() did not end: call abandon() first")
        fixed = sum(s.tokens for s in self.prefix + self.window if s.kind == "pinned")
        if n < 1 or fixed + n > self.budget.tokens:
            raise ValueError(
                f"a segment of {n} tokens does not fit: budget {self.budget.tokens}, of it {fixed} pinned"
            )
        while self.prefix_tokens + self.window_tokens + n > self.budget.tokens:
            if self.window:
                self.evict_oldest()
            else:
                self._drop_text()
        if self.layers[0].w1 + n > self.layers[0].capacity:
            self.moves += 1
            for layer in self.layers:
                layer.to_front()
        if self.next_position + count(parts) > self.budget.rebase_at:
            self._rebase()
        positions, advance = lay_out(parts, self.rope.axes, self.next_position)
        if keep is not None:
            positions = positions[..., keep]
        self.window.append(Segment(kind, n, advance, self.next_position, tag))
        self.next_position += advance
        return positions

    def abandon(self) -> None:
        """Forget the newest segment, also when its forward pass broke off half-way."""
        segment = self.window.pop()
        self.next_position = segment.position
        end = self.window_tokens
        for layer in self.layers:
            layer.w1 = layer.w0 + end

    def rewind(self, done: int) -> None:
        """Of the newest segment only the first `done` tokens were taken in: a pass over the rest may run (again)."""
        end = self.window_tokens - self.window[-1].tokens + done
        for layer in self.layers:
            layer.w1 = layer.w0 + end

    @property
    def unfinished(self) -> bool:
        """The newest segment was reserved, and its forward pass has not ended."""
        return any(layer.w1 - layer.w0 != self.window_tokens for layer in self.layers)

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """The model's call, once a layer: new keys and values → all that is visible."""
        return self.layers[layer].append(keys, values)

    def pin(self) -> None:
        """All that is in the window becomes prefix and stays: system prompt, standing question."""
        for segment in list(self.window):
            segment.kind = "pinned"
            self._graduate()
        self.stamp()

    # ------------------------------------------------------------ letting go

    def evict_oldest(self) -> Segment:
        """The oldest of the window leaves it: to the prefix if it is text, else for good."""
        segment = self.window[0]
        if segment.kind == "pinned" or (segment.kind == "text" and self.budget.text):
            self._graduate()
            while sum(s.tokens for s in self.prefix if s.kind == "text") > self.budget.text:
                self._drop_text()
        else:
            if self.on_evict:
                self.on_evict(self, segment)
            self.window.pop(0)
            for layer in self.layers:
                layer.w0 += segment.tokens
        self.stamp()
        return segment

    def export(self, segment: Segment) -> Tensor:
        """A window segment's keys at position 0 and values: (layers, 2, B, H, T, D)."""
        start = 0
        for other in self.window:
            if other is segment:
                break
            start += other.tokens
        back = self.rope.turn_by(-segment.position)
        pairs: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            keys, values = layer.window(start, start + segment.tokens)
            pairs.append(torch.stack((back(keys, i), values)))
        return torch.stack(pairs)

    def fork(self, retrieved: Sequence[tuple[Tensor, int]] = (), room: int = 512) -> Branch:
        """An answer's branch: prefix, retrieved blocks (oldest first), window; `room` for new tokens.

        retrieved: (block as `export` gave it, its segment's advance). The cache itself does not change.
        """
        between = sum(advance for _, advance in retrieved)
        first = self._window_position()
        branch_layers: list[Any] = []
        turns = []
        at = first - between
        for _, advance in retrieved:
            turns.append(self.rope.turn_by(at))
            at += advance
        pre = self.rope.turn_by(self._homes() + first - between) if retrieved and self.prefix else None
        for i, layer in enumerate(self.layers):
            keys, values = [], []
            if pre is None:
                parts = layer.visible()
                keys.append(parts[0][:, :, : layer.w0 - layer.lo])
                values.append(parts[1][:, :, : layer.w0 - layer.lo])
            else:
                keys.append(pre(self.pristine[i][0], i))
                values.append(self.pristine[i][1])
            for (block, _), turn in zip(retrieved, turns, strict=True):
                keys.append(turn(block[i, 0].to(values[0].device, values[0].dtype), i))
                values.append(block[i, 1].to(values[0].device, values[0].dtype))
            k, v = layer.window()
            total = sum(x.shape[2] for x in keys) + k.shape[2]
            new = self.branch_type.layer_type(total + room)
            if layer.ready:
                new.append(torch.cat([*keys, k], 2), torch.cat([*values, v], 2))
            branch_layers.append(new)
        return self.branch_type(self.rope.axes, branch_layers, self.next_position)

    # ------------------------------------------------------------ moving parts

    def _window_position(self) -> int:
        return self.window[0].position if self.window else self.next_position

    def _homes(self) -> Tensor:
        """(S,): position of each prefix segment, per token, counted back from the window's first."""
        homes: list[int] = []
        at = -sum(s.advance for s in self.prefix)
        for segment in self.prefix:
            homes += [at] * segment.tokens
            at += segment.advance
        return torch.tensor(homes, dtype=torch.long)

    def _graduate(self) -> None:
        """Oldest of the window → end of the prefix. The caller stamps."""
        segment = self.window.pop(0)
        back = self.rope.turn_by(-segment.position)
        for i, layer in enumerate(self.layers):
            keys, values = layer.window(0, segment.tokens)
            keys = back(keys, i)
            if len(self.pristine) <= i:
                self.pristine.append((keys, values.clone()))
            else:
                old = self.pristine[i]
                self.pristine[i] = torch.cat((old[0], keys), 2), torch.cat((old[1], values), 2)
            layer.w0 += segment.tokens
        self.prefix.append(replace(segment, position=0))

    def _drop_text(self) -> None:
        """Cut the oldest of the text tier; there is one."""
        self._cut(next(s for s in self.prefix if s.kind == "text"))
        self.stamp()

    def _cut(self, segment: Segment) -> None:
        start = 0
        for other in self.prefix:
            if other is segment:
                break
            start += other.tokens
        stop = start + segment.tokens
        self.pristine = [
            (torch.cat((k[:, :, :start], k[:, :, stop:]), 2), torch.cat((v[:, :, :start], v[:, :, stop:]), 2))
            for k, v in self.pristine
        ]
        self.prefix = [s for s in self.prefix if s is not segment]

    def stamp(self) -> None:
        """Place the prefix right before the window, at positions that end where the window starts."""
        if not self.prefix:
            for layer in self.layers:
                layer.lo = layer.w0
            return
        move = self.rope.turn_by(self._homes() + self._window_position())
        for i, (keys, values) in enumerate(self.pristine):
            self.layers[i].stamp(move(keys, i), values)

    def _rebase(self) -> None:
        """Turn the window back so that the prefix starts at position 0."""
        shift = self._window_position() - sum(s.advance for s in self.prefix)
        if shift <= 0:
            return
        self.rebases += 1
        back = self.rope.turn_by(-shift)
        for i, layer in enumerate(self.layers):
            keys, _ = layer.window()
            keys.copy_(back(keys, i))
        for segment in self.window:
            segment.position -= shift
        self.next_position -= shift
        self.stamp()
