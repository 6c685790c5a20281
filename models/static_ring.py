"""A rolling cache of fixed shapes, for compiled models and for many streams in one batch: a row is a stream.

    slots of a row: [ sinks | picture 0 | picture 1 | … | picture F-1 | scratch: question and answer | trash ]

A new picture overwrites the oldest. The order of slots does not matter: keys carry their rotation, and a mask
says who sees whom. Pictures never see the scratch, so a row answers while it watches, without any copy; rows that
have nothing to do in a step write to the trash. There is no text tier here: `RollingKv` has one.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from .ring_kv import Part, count, lay_out
from .rope import Rotator


class StaticLayer:
    """One layer: (B, H, slots, D), written at the slots that its owner points to."""

    def __init__(self, owner: StaticRing) -> None:
        self.owner = owner
        self.keys = self.values = torch.empty(0)
        self.ready = False

    def allocate(self, like: Tensor) -> None:
        """Memory for keys like (B, H, T, D). Raises: ValueError when the batch is another."""
        b, h, _, d = like.shape
        if b != self.owner.rows:
            raise ValueError(f"a batch of {b} for a static ring of {self.owner.rows} rows")
        self.keys = like.new_zeros(b, h, self.owner.slots, d)
        self.values = like.new_zeros(b, h, self.owner.slots, d)
        self.ready = True

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H, T, D) → all slots; the mask hides what must not be seen."""
        at = self.owner.target(keys.shape[2])[:, None, :, None].expand_as(keys)
        self.keys.scatter_(2, at, keys)
        self.values.scatter_(2, at, values)
        return self.keys, self.values


class StaticRing:
    """Rows of streams. All steps of one kind have one shape: nothing is compiled twice."""

    layer_type: type[StaticLayer] = StaticLayer

    def __init__(
        self,
        rope: Rotator,
        layers: int,
        *,
        rows: int,
        sinks: int,
        frame: tuple[Part, ...],
        frames: int,
        scratch: int = 64,
        rebase_at: int = 1 << 15,
        device: torch.device | str = "cpu",
    ) -> None:
        self.rope, self.rows, self.sinks, self.frame, self.frames = rope, rows, sinks, frame, frames
        self.frame_tokens = count(frame)
        self.scratch, self.rebase_at = scratch, rebase_at
        self._frame_advance = lay_out(frame, rope.axes, 0)[1]
        if rebase_at < 2 * (sinks + frames * self._frame_advance + scratch):
            raise ValueError(f"rebase_at {rebase_at} is under twice the positions that a row holds")
        self._first_scratch = sinks + frames * self.frame_tokens
        self._trash = self._first_scratch + scratch
        self.slots = self._trash + max(self.frame_tokens, sinks, scratch)
        self.device = torch.device(device)
        self.layers: list[Any] = [self.layer_type(self) for _ in range(layers)]
        self._targets: dict[int, Tensor] = {}  # by tokens of a step: (B, T), always the same memory
        self._seen = torch.zeros(rows, self.slots, dtype=torch.bool, device=self.device)
        self._pristine: list[Tensor] = []  # a layer: sinks' keys at positions 0.. (B, H, S, D)
        self._next = [0] * rows  # position of a row's next picture
        self._count = [0] * rows  # pictures a row has taken
        self._used = [0] * rows  # scratch tokens in use

    def target(self, tokens: int) -> Tensor:
        """(B, T): where a step of that many tokens writes."""
        if tokens not in self._targets:
            self._targets[tokens] = torch.zeros(self.rows, tokens, dtype=torch.long, device=self.device)
        return self._targets[tokens]

    def reserve_sinks(self) -> tuple[Tensor, Tensor]:
        """Once, for all rows together. → position_ids, mask (B, 1, S, slots). Call `seal` afterwards."""
        self._next = [self.sinks] * self.rows
        return self._step(range(self.rows), (self.sinks,), [0] * self.rows, [0] * self.rows)

    def seal(self) -> None:
        """The sinks' keys are kept pristine from now on."""
        self._pristine = [layer.keys[:, :, : self.sinks].clone() for layer in self.layers]

    def reserve_frame(self, rows: Collection[int]) -> tuple[Tensor, Tensor]:
        """The next picture of these rows. → position_ids, mask; feed anything for the other rows."""
        first, at = [self._trash] * self.rows, [0] * self.rows
        for row in rows:
            if self._next[row] + self._frame_advance + self.scratch > self.rebase_at:
                self._rebase(row)
            first[row] = self.sinks + self._count[row] % self.frames * self.frame_tokens
            at[row] = self._next[row]
            self._seen[row, first[row] : first[row] + self.frame_tokens] = False
            self._next[row] += self._frame_advance
            self._count[row] += 1
        self._stamp()
        return self._step(rows, self.frame, first, at)

    def reserve_words(self, rows: Collection[int], tokens: int) -> tuple[Tensor, Tensor]:
        """Question or answer tokens of these rows, in their scratch. Raises: ValueError when it is full."""
        first, at = [self._trash] * self.rows, [0] * self.rows
        for row in rows:
            if self._used[row] + tokens > self.scratch:
                raise ValueError(f"row {row}: {tokens} more words do not fit its scratch of {self.scratch}")
            first[row] = self._first_scratch + self._used[row]
            at[row] = self._next[row] + self._used[row]
            self._used[row] += tokens
        return self._step(rows, (tokens,), first, at)

    def drop_words(self, row: int) -> None:
        """The answer has ended, or was interrupted: its words leave no trace."""
        self._seen[row, self._first_scratch : self._trash] = False
        self._used[row] = 0

    def clear(self, row: int) -> None:
        """The stream of this row is gone: the next one finds only the sinks."""
        self.drop_words(row)
        self._seen[row, self.sinks :] = False
        self._next[row], self._count[row] = self.sinks, 0
        self._stamp()

    # ------------------------------------------------------------ moving parts

    def _step(
        self, rows: Collection[int], parts: tuple[Part, ...], first: list[int], at: list[int]
    ) -> tuple[Tensor, Tensor]:
        n = count(parts)
        active = set(rows)
        span = torch.arange(n, device=self.device)
        start = torch.tensor(first, device=self.device)
        target = self.target(n)
        target.copy_(start[:, None] + span)
        positions = torch.cat(
            [lay_out(parts, self.rope.axes, p)[0] for p in at], -2
        )  # rows beside each other
        mask = self._seen[:, None].expand(-1, n, -1).clone()  # (B, T, slots)
        if parts == self.frame and n == self.frame_tokens:
            mask[:, :, self._first_scratch :] = False  # what is said does not change what is seen
        causal = torch.ones(n, n, dtype=torch.bool, device=self.device).tril()
        mask.scatter_(2, target[:, None].expand(-1, n, -1), causal.expand(self.rows, -1, -1))
        for row in active:
            self._seen[row, first[row] : first[row] + n] = True
        return positions.to(self.device), mask[:, None]

    def _stamp(self) -> None:
        """Carry the sinks forward so that they end where the oldest picture of their row starts."""
        steps = [
            self._next[r] - min(self._count[r], self.frames) * self._frame_advance - self.sinks
            for r in range(self.rows)
        ]
        move = self.rope.turn_by(torch.tensor(steps, device=self.device)[:, None])
        for i, layer in enumerate(self.layers):
            if self._pristine:
                layer.keys[:, :, : self.sinks] = move(self._pristine[i], i)

    def _rebase(self, row: int) -> None:
        """Turn a row's pictures back so that its sinks start at position 0."""
        held = min(self._count[row], self.frames) * self._frame_advance
        shift = self._next[row] - held - self.sinks
        back = self.rope.turn_by(-shift)
        for i, layer in enumerate(self.layers):
            own = layer.keys[row : row + 1, :, self.sinks : self._trash]
            own.copy_(back(own, i))
        self._next[row] -= shift
