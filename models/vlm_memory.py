"""What a watching session keeps of the past, in numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Memory:
    """tokens: all that attention sees; text: of it, words that outlive the window. blocks: evicted pictures kept on
    disk, 0 for none; recall: how many of them join an answer, chosen by scorer."""

    tokens: int = 4096
    text: int = 512
    blocks: int = 0
    recall: int = 8
    scorer: Literal["mean_key", "recent", "random"] = "mean_key"
    limit: int = 0  # bytes of the cache, which may allow fewer tokens; 0: as many as tokens take
    pictures: int = 0  # at most so many in the window; 0: as many as tokens hold
