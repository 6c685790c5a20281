"""The window after this one, made while this one is still in use.

Whisper's positions count from the window's begin and go through every layer, so audio that stays must be encoded again
when the window moves: exactly, or not at all. What would be a burst of a second is done a few blocks at a time beside
the blocks that come: from `_BEGIN` of the window on, the audio after a seam is encoded as a new window of its own,
and takes over when it has caught up. It equals a window that was begun at the seam.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from .attention_kv import KvBuffer
from .causal_whisper import CausalWhisper, EncoderState
from .conv_stream import MelQueue
from .local_optimality import Hypothesis
from .whisper_dims import BlockPlan
from .whisper_ort import OrtWhisper
from .window_seam import Said, Seam, find_seam

_BEGIN = 0.85  # of the window: here the next one is begun
_KEEP = 0.2  # of the window lies between the seam and the place where the next one is begun
_LEAST = 60  # frames: words that are not final are seldom older
PACE = 3  # blocks of the next window a block of this one: it gains two a time


@dataclass(slots=True)
class NextWindow:
    """Encoder and cross-attention of a window that begins at `seam` of the one in use."""

    encoder: EncoderState
    cross: list[KvBuffer]
    seam: Seam

    def fork(self) -> NextWindow:
        """Goes on by itself: it shares what is filled, and writes beyond that only."""
        e = self.encoder
        queue = MelQueue(e.queue.frames, e.queue.first)
        layers = [replace(kv) for kv in e.layers]
        return NextWindow(EncoderState(queue, layers, e.at), [replace(kv) for kv in self.cross], self.seam)

    def lacks(self, now: int) -> bool:
        """Whether it has not heard all up to frame `now` of the window in use."""
        return self.encoder.at < now - self.seam.frame


def due(now: int, size: int) -> bool:
    """Whether a window of `size` frames that has heard `now` is to have a next one."""
    return now >= size * _BEGIN


class Used(Protocol):
    """What is asked of the window in use."""

    said: list[Said]
    worded: int

    @property
    def history(self) -> Tensor | None: ...  # (M, 2·now or more) mel

    @property
    def text(self) -> Hypothesis: ...


def begun(model: CausalWhisper | OrtWhisper, plan: BlockPlan, used: Used, now: int) -> NextWindow:
    """The window after the one in use, which has heard `now` frames, with nothing encoded."""
    assert used.history is not None
    size = model.dims.n_audio_ctx
    # text without room: it slides at once, and keeps as much in the end
    keep = _KEEP if due(now, size) else 2 * _KEEP
    least = min(_LEAST, size // 2)
    open_words = len(used.text.tokens) > used.worded
    seam = find_seam(used.said, now, plan, max(least, int(size * keep)), open_words=open_words)
    encoder = model.encoder.start(plan)
    encoder.queue.push(used.history[:, 2 * seam.frame : 2 * now])
    return NextWindow(encoder, model.decoder.start(size), seam)


def catch_up(
    model: CausalWhisper | OrtWhisper,
    plan: BlockPlan,
    windows: Sequence[tuple[NextWindow, int, int]],
    ahead: Sequence[Tensor],
) -> None:
    """Encode on: (window, frames heard by the one in use, most blocks), and mel beyond for the look-ahead.

    Windows whose next blocks are of one length share a forward.
    """
    left = [most for _, _, most in windows]
    while True:
        groups: dict[int, list[int]] = {}
        for i, (window, now, _) in enumerate(windows):
            if left[i] and window.lacks(now):
                groups.setdefault(plan.block(window.encoder.at), []).append(i)
        if not groups:
            return
        for n, rows in groups.items():
            states = [windows[i][0].encoder for i in rows]
            held = [s.queue.frames for s in states]
            for state, i in zip(states, rows, strict=True):
                if plan.lookahead:  # the block that waits in the window in use
                    state.queue.push(ahead[i][:, : plan.lookahead])
            audio = model.encoder.step(states, n, plan)
            crosses = [windows[i][0].cross for i in rows]
            model.decoder.hear(audio, crosses)
            for state, cross, frames in zip(states, crosses, held, strict=True):
                state.queue.frames = frames
                model.encoder.commit(state, n, plan)
                for kv in cross:
                    kv.advance(n)
            for i in rows:
                left[i] -= 1
