"""Shapes of Whisper models and the block grid that a causal one is streamed on."""

from __future__ import annotations

from dataclasses import dataclass

FRAME_MS = 20  # one encoder frame: two mel frames of 10 ms


@dataclass(frozen=True, slots=True)
class WhisperDims:
    """Shape of a checkpoint, with the field names of OpenAI's `dims`."""

    n_mels: int
    n_audio_ctx: int  # encoder frames of 20 ms
    n_audio_state: int
    n_audio_head: int
    n_audio_layer: int
    n_vocab: int
    n_text_ctx: int  # tokens
    n_text_state: int
    n_text_head: int
    n_text_layer: int

    def __post_init__(self) -> None:
        for name, width, heads in (
            ("audio", self.n_audio_state, self.n_audio_head),
            ("text", self.n_text_state, self.n_text_head),
        ):
            if heads < 1 or width % heads or width % 2:
                raise ValueError(
                    f"n_{name}_state {width} must be even and a multiple of n_{name}_head {heads}"
                )
        if self.n_audio_state != self.n_text_state:
            raise ValueError(
                f"n_audio_state {self.n_audio_state} and n_text_state {self.n_text_state} differ; "
                "cross-attention needs them equal"
            )


def _size(width: int, heads: int, layers: int, **other: int) -> WhisperDims:
    fields = {"n_mels": 80, "n_vocab": 51865, "n_text_layer": layers} | other
    return WhisperDims(
        n_audio_ctx=1500,
        n_audio_state=width,
        n_audio_head=heads,
        n_audio_layer=layers,
        n_text_ctx=448,
        n_text_state=width,
        n_text_head=heads,
        **fields,
    )


SIZES = {
    "tiny": _size(384, 6, 4),
    "base": _size(512, 8, 6),
    "small": _size(768, 12, 12),
    "medium": _size(1024, 16, 24),
    "large-v2": _size(1280, 20, 32),
    "large-v3": _size(1280, 20, 32, n_mels=128, n_vocab=51866),
    "large-v3-turbo": _size(1280, 20, 32, n_mels=128, n_vocab=51866, n_text_layer=4),
}
"""Published sizes (openai/whisper, model card). The multilingual vocabularies; `.en` models have one id less."""


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """The grid of blocks: a frame attends to its own block and to those before it.

    Source: CarelessWhisper, arXiv 2508.12301, section 3.1: a first block of 30 frames, then chunks.
    """

    chunk: int = 15  # encoder frames a block
    first: int = 30  # frames of the first block
    lookahead: int = 0  # mel frames beyond the block that the convolutions may see: 0 or 1
    left: int | None = None  # frames before its block that a frame may see; None: all of the window

    def __post_init__(self) -> None:
        if not 1 <= self.chunk <= 50:
            raise ValueError(
                f"a chunk of {self.chunk * FRAME_MS} ms is not possible; it has {FRAME_MS} to 1000 ms"
            )
        if self.first < self.chunk:
            raise ValueError(f"the first block ({self.first} frames) is shorter than a chunk ({self.chunk})")
        if self.lookahead not in (0, 1):
            raise ValueError(f"look-ahead of {self.lookahead} mel frames is not possible; it is 0 or 1")
        if self.left is not None and self.left < self.first:
            raise ValueError(f"a left window of {self.left} frames is shorter than the first block")

    @classmethod
    def of_ms(cls, chunk_ms: int, *, first_ms: int | None = None, left_ms: int | None = None) -> BlockPlan:
        """A plan from times. Raises: ValueError where they are no whole number of 20 ms frames."""
        for ms in (chunk_ms, first_ms or FRAME_MS, left_ms or FRAME_MS):
            if ms % FRAME_MS or ms <= 0:
                raise ValueError(f"{ms} ms is not a multiple of {FRAME_MS} ms")
        chunk = chunk_ms // FRAME_MS
        first = first_ms // FRAME_MS if first_ms else max(30, chunk)
        return cls(chunk, first, left=left_ms // FRAME_MS if left_ms else None)

    @property
    def chunk_ms(self) -> int:
        return self.chunk * FRAME_MS

    def block(self, start: int) -> int:
        """Length of the block that begins at frame `start` of a window."""
        return self.first if start == 0 else self.chunk

    def bounds(self, frames: int) -> list[tuple[int, int]]:
        """All blocks of a window of `frames`: [(begin, end), …]; the last may be short."""
        out: list[tuple[int, int]] = []
        at = 0
        while at < frames:
            end = min(frames, at + self.block(at))
            out.append((at, end))
            at = end
        return out
