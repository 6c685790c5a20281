"""A vision-language model that runs here: fetched, put on the pool's device, and set to watch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..models.devices import pick
from ..models.vlm_memory import Memory
from ..pipeline.frame import Frame, VideoFrame
from ..pipeline.pixels import to_rgb
from ..pipeline.stage import Context, StageError
from .vlm_answers import Voice
from .vlm_rows import hub_rows, load
from .vlm_watch import Watch


async def load_watch(
    ctx: Context, options: Any, memory: Memory, voice: Voice, notes: Callable[[], str]
) -> Watch:
    """options: of `vlm.stream`. Raises: StageError in words."""
    pool = ctx.pool()
    try:
        device = pick(pool.device)
        what = (options.model, device, options.dtype, options.picture_tokens, options.system, options.chunk)
        rows = await pool.call(hub_rows, *what)
    except ModuleNotFoundError as e:
        words = f"model {options.model!r} needs the package {e.name!r}: pip install 'penstock[hub]'"
        raise StageError(f"node {ctx.node!r}: {words}; or use model: scene") from e
    except ValueError as e:
        raise StageError(f"node {ctx.node!r}: {e}") from e
    name = f"vlm {options.model} {abs(hash(what)):x}"
    await load(pool, name, rows)
    try:
        watch = Watch(
            ctx, rows, name, memory, voice=voice, fps=options.fps, answer_tokens=options.answer_tokens,
            late=options.late, check=options.check, to_tensor=_tensor, notes=notes,
        )  # fmt: skip
    except ValueError as e:
        raise StageError(f"node {ctx.node!r}: memory: {e}") from e
    await watch.start()
    ctx.emit("vlm.ready", model=options.model)
    return watch


def _tensor(frame: Frame) -> Tensor:
    """uint8 (3, H, W)."""
    assert isinstance(frame, VideoFrame)
    return torch.from_numpy(np.ascontiguousarray(to_rgb(frame))).permute(2, 0, 1)
