"""A very small streaming vision-language model for the synthetic world, and for nothing else.

    picture, previous picture ─ Eye ─► 4 thing tokens + 1 scene token ─► Decoder ─► words
                                                                          ▲
                                                        questions, <look> after each picture

The eye gets motion as its own input (the difference of two pictures). It proposes things by their centre's
cell, keeps the best four, and hands only their probabilities and places on; the decoder is a plain RoPE transformer that
says something at `<look>` only when something happened. It has seen nothing but the synthetic world: shown
a camera it would invent shapes, so no camera ever reaches it.

Source: thing tokens as in slot-based encoders (2006.15055); speaking by P(silence): VideoLLM-online (2406.11816).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from .packed import Packed
from .rope import Rope, turn
from .toy_questions import INDEX, WORDS
from .toy_world import COLOURS, DIRECTIONS, SHAPES, SIZE

THINGS = 4  # thing tokens a picture
TOKENS = THINGS + 1  # and one of the scene
CELLS = 6  # a side: a cell is 8 pixels
CELL_PARTS = (1, len(SHAPES), len(COLOURS), len(DIRECTIONS), 2)  # thing?, shape, colour, direction, offset
THING = sum(CELL_PARTS) + 3  # numbers of a thing token: see `things`
SCENE_PARTS = (3, 3, 6)  # brightness, motion, main colour
_CHANNELS = 96
WEIGHTS = Path(__file__).parent / "data" / "toy_vlm.safetensors"


class Seen(NamedTuple):
    """What the eye makes of B pictures; logits, so that each part can be taught by itself."""

    cells: Tensor  # (B, sum(CELL_PARTS), 6, 6)
    scene: Tensor  # (B, sum(SCENE_PARTS))


class Attendable(Protocol):
    """A KV cache as the decoder uses it: takes new keys and values, returns all that is visible."""

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]: ...


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, 1, 1), nn.GroupNorm(8, channels), nn.GELU(),
            nn.Conv2d(channels, channels, 3, 1, 1), nn.GroupNorm(8, channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x + self.body(x))


class Eye(nn.Module):
    """Two pictures → things by cell, and the scene."""

    def __init__(self) -> None:
        super().__init__()
        c = _CHANNELS
        self.net = nn.Sequential(
            nn.Conv2d(6, 24, 3, 2, 1), nn.GELU(),
            nn.Conv2d(24, 48, 3, 2, 1), nn.GroupNorm(8, 48), nn.GELU(), _Residual(48),
            nn.Conv2d(48, c, 3, 2, 1), nn.GroupNorm(8, c), nn.GELU(), _Residual(c), _Residual(c),
        )  # fmt: skip
        self.head = nn.Conv2d(c, sum(CELL_PARTS), 1)
        # no normalisation here: brightness and the amount of motion are absolute
        self.pixel = nn.Sequential(nn.Conv2d(6, 24, 1), nn.GELU(), nn.Conv2d(24, 24, 1), nn.GELU())
        self.scene = nn.Sequential(nn.Linear(26, 64), nn.GELU(), nn.Linear(64, sum(SCENE_PARTS)))

    def forward(self, now: Tensor, before: Tensor) -> Seen:
        """uint8 (B, 3, 48, 48) twice; for a first picture `before` is the picture itself."""
        a = now.float() / 127.5 - 1
        change = (now.float() - before.float()) / 32
        features = self.net(torch.cat((a, change), 1))
        pooled = self.pixel(torch.cat((a, change.abs()), 1)[:, :, ::2, ::2]).mean((2, 3))  # (B, 24)
        exact = torch.stack((change.abs().mean((1, 2, 3)) * 4, a.mean((1, 2, 3)) * 2), 1)  # (B, 2)
        return Seen(self.head(features), self.scene(torch.cat((pooled, exact), 1)))


def things(seen: Seen) -> Tensor:
    """The best four cells: (B, 4, THING): how surely it is there, probabilities of shape, colour and direction,
    place in [-1, 1], and whether that is left, in the centre or right.

    A cell yields to a better neighbour of the same colour: one thing near a border is not two.
    """
    there, shape, colour, direction, offset = seen.cells.flatten(2).split(CELL_PARTS, 1)  # (B, n, 36)
    score = there.squeeze(1).sigmoid()
    best, at = score.topk(THINGS + 2, 1)  # (B, 6)

    def pick(x: Tensor) -> Tensor:
        return x.gather(2, at[:, None].expand(-1, x.shape[1], -1)).transpose(1, 2)  # (B, 6, n)

    hue = pick(colour).argmax(-1)
    row, column = at // CELLS, at % CELLS
    near = (
        torch.maximum((row[:, :, None] - row[:, None]).abs(), (column[:, :, None] - column[:, None]).abs())
        <= 1
    )
    same = near & (hue[:, :, None] == hue[:, None])
    yields = (same & torch.ones_like(same).tril(-1)).any(-1)  # sorted by score: the earlier is the better
    best = best.masked_fill(yields, 0.0)
    order = best.topk(THINGS, 1).indices
    centre = torch.stack((column, row), -1) + 0.5 + pick(offset).tanh() * 0.5
    x = centre[..., :1] * (SIZE / CELLS)  # pixels
    left, right = torch.sigmoid(SIZE / 3 - x), torch.sigmoid(x - SIZE * 2 / 3)
    all_six = torch.cat(
        (
            best[..., None], pick(shape).softmax(-1), pick(colour).softmax(-1), pick(direction).softmax(-1),
            centre / (CELLS / 2) - 1, left, 1 - left - right, right,
        ), -1,
    )  # fmt: skip
    chosen = all_six.gather(1, order[..., None].expand(-1, -1, all_six.shape[-1]))
    # what is hardly there says nothing
    return torch.cat((chosen[..., :1], chosen[..., 1:] * chosen[..., :1]), -1)


def scene(seen: Seen) -> Tensor:
    """(B, 1, 12): probabilities of brightness, motion and main colour."""
    return torch.cat([p.softmax(-1) for p in seen.scene.split(SCENE_PARTS, 1)], 1)[:, None]


class Block(nn.Module):
    """Attention over what the cache shows, and a gated MLP."""

    def __init__(self, width: int, heads: int, kv_heads: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, width // heads
        self.before_attention = nn.RMSNorm(width)
        self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * self.head_dim, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.before_mlp = nn.RMSNorm(width)
        self.up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: Attendable | None, layer: int
    ) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (
            part.view(b, t, -1, self.head_dim).transpose(1, 2)  # (B, H, T, D)
            for part in self.qkv(self.before_attention(x)).split(
                [n * self.head_dim for n in (self.heads, self.kv_heads, self.kv_heads)], -1
            )
        )
        q, k = turn(q, cos, sin), turn(k, cos, sin)
        if cache is not None:
            k, v = cache.update(k, v, layer)
        if isinstance(cache, Packed):
            y = cache.attend(q, layer)
        else:
            with torch.autocast(x.device.type, enabled=False):  # in bf16 its backward is slower on a CPU
                y = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask, enable_gqa=True).to(
                    q
                )
        x = x + self.out(y.transpose(1, 2).reshape(b, t, -1))
        gate, up = self.up(self.before_mlp(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Decoder(nn.Module):
    """Words from words and pictures. All state is in the cache that is passed in."""

    def __init__(self, width: int = 128, layers: int = 4, heads: int = 4, kv_heads: int = 2) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, width // heads
        self.words = nn.Embedding(len(WORDS), width)
        self.from_thing = nn.Linear(THING, width)
        self.from_scene = nn.Linear(sum(SCENE_PARTS), width)
        self.blocks = nn.ModuleList(Block(width, heads, kv_heads, width * 5 // 2) for _ in range(layers))
        self.norm = nn.RMSNorm(width)
        self.rope = Rope(self.head_dim)
        nn.init.normal_(self.words.weight, 0, 0.05)
        nn.init.normal_(self.from_thing.weight, 0, 0.05)
        with torch.no_grad():
            # a thing begins as the sum of the words that name it: what the answers will be
            named = (*SHAPES, *COLOURS, *DIRECTIONS)
            self.from_thing.weight[:, 1 : 1 + len(named)] += self.words.weight[[INDEX[w] for w in named]].T

    def picture(self, slots: Tensor, whole: Tensor) -> Tensor:
        """`things` (B, 4, S) and `scene` (B, 1, 12) → tokens (B, 5, width)."""
        return torch.cat((self.from_thing(slots), self.from_scene(whole)), 1)

    def forward(
        self, x: Tensor, positions: Tensor, mask: Tensor | None = None, cache: Attendable | None = None
    ) -> Tensor:
        """x (B, T, width), positions (T,) or (B, T) → word logits (B, T, words).

        mask: bool (B, 1, T, T); left out, new tokens see all that is cached and each other causally.
        """
        return self.logits(self.hidden(x, positions, mask, cache))

    def hidden(self, x: Tensor, positions: Tensor, mask: Tensor | None, cache: Attendable | None) -> Tensor:
        """The same up to the last layer: (B, T, width)."""
        cos, sin = self.rope.angles(positions)
        if positions.ndim == 2:
            cos, sin = cos[:, None], sin[:, None]  # (B, 1, T, D)
        for layer, block in enumerate(self.blocks):
            if mask is None and not isinstance(cache, Packed):
                mask = _causal(x.shape[1], x.shape[1] + _cached(cache), x.device)
            x = block(x, cos, sin, mask, cache, layer)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., width) → (..., words)."""
        return F.linear(self.norm(hidden), self.words.weight)


def _cached(cache: Attendable | None) -> int:
    return 0 if cache is None else int(getattr(cache, "visible", 0))


def _causal(new: int, total: int, device: torch.device) -> Tensor:
    """(new, total): the last `new` tokens see all before them."""
    return torch.ones(new, total, dtype=torch.bool, device=device).tril(total - new)


class ToyVlm(nn.Module):
    """Eye and decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.eye = Eye()
        self.decoder = Decoder()

    def look(self, now: Tensor, before: Tensor) -> Tensor:
        """uint8 (B, 3, 48, 48) twice → five tokens a picture (B, 5, width)."""
        assert now.shape[-1] == SIZE
        seen = self.eye(now, before)
        return self.decoder.picture(things(seen), scene(seen))


def load(path: Path = WEIGHTS) -> ToyVlm:
    """The trained toy, in float32, ready to use. Raises: FileNotFoundError."""
    model = ToyVlm()
    model.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return model.eval().requires_grad_(False)
