"""Vision-language models from the hub or from disk, as streaming models: safetensors only. Needs the `hub` extra.

    Qwen2.5-VL, Qwen3-VL     grid of 28 or 32 pixel cells, as many as `tokens` allows, M-RoPE, deepstack
    SmolVLM2                 one square picture, no tiles
    LLaVA-OneVision          as its video frames: 14×14 tokens and a newline
    Gemma 3                  256 tokens that see each other both ways

A stream is one open user turn: system text, then pictures without end; a question closes the turn on a branch.
Pictures are resized and normalised here, by the checkpoint's own numbers, on the model's device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional as F

from .packed import Packed, Run, install
from .query_tap import QueryTap
from .ring_kv import Part
from .rolling_cache import RollingCache, text_model_of
from .rolling_kv import Budget, Evicted, RollingKv
from .vision_tap import VisionTap
from .vlm_config import ModelError, check_size, read_json, read_kind
from .vlm_model import Picture
from .vlm_prompt import Prompt

# config.model_type → the picture in a rendered chat, and what stands before and after its tokens
FAMILIES: dict[str, tuple[str, str, str]] = {
    "qwen2_5_vl": ("<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|>", "<|vision_end|>"),
    "qwen3_vl": ("<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|>", "<|vision_end|>"),
    "smolvlm": ("<image>", "<fake_token_around_image><global-img>", "<fake_token_around_image>"),
    "llava_onevision": ("<image>", "", ""),
    "gemma3": ("<start_of_image>", "\n\n<start_of_image>", "<end_of_image>\n\n"),
}


class HubVlm:
    """`StreamingVlm` of a transformers checkpoint. tokens: of a picture, at most, where the family lets us choose."""

    def __init__(
        self, folder: Path, *, device: str = "cpu", dtype: str = "auto", tokens: int = 128, system: str = ""
    ) -> None:
        kind = read_kind(folder)
        self.device = torch.device(device)
        self.model = _load(folder, self.device, dtype)
        self.text_model = text_model_of(self.model)
        install(self.text_model)
        self.core, self.kind, self.name = self.model.model, kind, folder.name
        config, text = self.model.config, self.text_model.config
        heads = int(text.num_key_value_heads)
        dim = int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
        layers = int(text.num_hidden_layers)
        self.shape = (layers, heads, dim)
        self.token_bytes = 2 * layers * heads * dim * self.model.dtype.itemsize
        self.tapped: tuple[int, ...] = tuple(sorted({layers // 3, layers // 2, (layers * 2) // 3}))
        self.silence: int | None = None  # none of these was taught to be silent: standing questions are asked
        self.whole, self.remembers = kind == "gemma3", True
        picture, before, after = FAMILIES[kind]
        self.prompt = Prompt(folder, picture, system)
        self._before, self._after = (self._ids(self.prompt.encode(x)) for x in (before, after))
        self.system = self._ids(self.prompt.head)
        self.stop: frozenset[int] = self.prompt.stop | _stops(self.model)
        self.yes_no: tuple[Tensor, Tensor] | None = (
            torch.tensor(self.prompt.first_ids("yes", "Yes", " yes", " Yes")),
            torch.tensor(self.prompt.first_ids("no", "No", " no", " No")),
        )
        file = folder / "preprocessor_config.json"
        numbers = read_json(file)
        mean, std = numbers.get("image_mean", [0.5] * 3), numbers.get("image_std", [0.5] * 3)
        try:
            self._mean, self._std = (torch.tensor(v, device=self.device).view(3, 1, 1) for v in (mean, std))
        except (TypeError, ValueError, RuntimeError) as e:
            words = f"image_mean is {mean!r}, image_std {std!r}; accepted: three numbers each"
            raise ModelError(f"{file}: {words}") from e
        vision = config.vision_config
        self._patch = int(vision.patch_size)
        self._merge = int(getattr(vision, "spatial_merge_size", 1))
        self._temporal = int(getattr(vision, "temporal_patch_size", 1))
        side = int(getattr(vision, "image_size", 0) or 0)
        self.size: tuple[int, int] = (side, side)
        if kind.startswith("qwen"):
            cell = self._patch * self._merge
            # 4:3, as most cameras
            columns = max(1, int(math.sqrt(tokens * 4 / 3)))
            self.size = (max(1, tokens // columns) * cell, columns * cell)
        self._tap = VisionTap(self.core, vision, kind)

    # ------------------------------------------------------------ pictures

    def look(self, now: Tensor, before: Tensor) -> list[Picture]:
        x = (
            F.interpolate(now.to(self.device).float(), self.size, mode="bilinear", antialias=True).round()
            / 255
        )
        x = ((x - self._mean) / self._std).to(self.model.dtype)
        deep: list[list[Tensor]] = [[] for _ in x]
        grid: tuple[int, int] | None = None
        with self._tap:
            if self.kind.startswith("qwen"):
                rows, columns = (s // self._patch for s in self.size)
                thw = torch.tensor([[1, rows, columns]] * len(x), device=self.device)
                out = self.core.get_image_features(self._patches(x), thw)
                features = list(out.pooler_output)
                grid = rows // self._merge, columns // self._merge
                for level in getattr(out, "deepstack_features", None) or ():
                    for own, part in zip(deep, level, strict=True):
                        own.append(part)
            elif self.kind == "smolvlm":
                features = list(self.core.get_image_features(x[:, None]).pooler_output)
            elif self.kind == "llava_onevision":
                features = list(self.core.get_video_features(x[:, None]).pooler_output)
            else:
                features = list(self.core.get_image_features(x).pooler_output)
        if grid is None:
            side = math.isqrt(features[0].shape[0])
            grid = side, side
        scores = self._tap.scores(len(x), grid, self.size)
        return [self._picture(f, grid, s, d) for f, s, d in zip(features, scores, deep, strict=True)]

    def _picture(
        self, features: Tensor, grid: tuple[int, int], scores: Tensor, deep: list[Tensor]
    ) -> Picture:
        a, b, n = len(self._before), len(self._after), features.shape[0]
        visual = grid[0] * grid[1]
        marks = [self.embed(ids)[0] for ids in (self._before, self._after)]
        tokens = torch.cat((marks[0], features.to(marks[0].dtype), marks[1]))[None]
        shaped: Part = (1, *grid) if n == visual and self.kind.startswith("qwen") else n
        parts = tuple(p for p in (a, shaped, b) if p)
        inf = torch.full((1,), torch.inf)
        full = torch.cat((inf.expand(a), scores, inf.expand(n - visual + b)))
        padded = tuple(F.pad(d.to(tokens.dtype), (0, 0, a, b)) for d in deep)
        return Picture(tokens, parts, a, grid, full, padded)

    def _patches(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) → (patches, 3 · temporal · patch²), merge cells together; a still picture fills the time.

        Source: Qwen2-VL (2409.12191), and transformers' Qwen2VLImageProcessor for the order.
        """
        p, m = self._patch, self._merge
        b, c, h, w = x.shape
        y = x.view(b, c, h // p // m, m, p, w // p // m, m, p)
        y = y.permute(0, 2, 5, 3, 6, 1, 4, 7)  # B, rows, columns, m, m, C, p, p
        y = y[..., None, :, :].expand(*y.shape[:6], self._temporal, p, p)
        return y.reshape(b * (h // p) * (w // p), -1)

    # ------------------------------------------------------------ words

    def cache(self, budget: Budget, on_evict: Evicted | None = None) -> RollingKv:
        return RollingCache(self.text_model, budget, on_evict)

    def embed(self, ids: Tensor) -> Tensor:
        return self.text_model.get_input_embeddings()(ids.to(self.device))[None]

    def run(
        self, x: Tensor, positions: Tensor, packed: Packed, deep: Sequence[tuple[int, Sequence[Tensor]]] = ()
    ) -> Tensor:
        extra: dict[str, Any] = {}
        if deep:
            mask = torch.zeros(1, x.shape[1], dtype=torch.bool, device=x.device)
            for at, levels in deep:
                mask[0, at : at + len(levels[0])] = True
            extra = {
                "visual_pos_masks": mask,
                "deepstack_visual_embeds": [
                    torch.cat(level) for level in zip(*(d for _, d in deep), strict=True)
                ],
            }
        out = self.text_model(
            inputs_embeds=x, position_ids=positions, cache=packed, use_cache=True, packed=packed, **extra
        )
        return out.last_hidden_state[0]

    def logits(self, hidden: Tensor) -> Tensor:
        return self.model.lm_head(hidden).float().cpu()

    def query(self, ids: Tensor, cache: RollingKv) -> Tensor:
        branch = cache.fork(room=len(ids))
        with QueryTap(self.text_model) as tap:
            x = self.embed(ids)
            self.run(x, branch.reserve(len(ids)).to(x.device), Packed([Run(branch, len(ids))]))
        return tap.query

    def question(self, text: str) -> Tensor:
        return self._ids(self.prompt.question(text))

    def closing(self, answer: Sequence[int]) -> Tensor:
        return self._ids(self.prompt.closing)

    def text(self, ids: Sequence[int]) -> str:
        return self.prompt.decode([i for i in ids if i not in self.stop])

    def _ids(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor(ids, dtype=torch.long)


def fetch(name: str) -> Path:
    """A local folder, or the hub's copy of `owner/name`. Raises: ModelError in words."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ModelError(
            f"model {name!r} is neither a folder nor a hub id such as HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(name, allow_patterns=["*.json", "*.jinja", "*.safetensors", "*.model", "*.txt"])
        )
    except Exception as e:
        words = str(e).strip().splitlines()
        raise ModelError(
            f"model {name!r} could not be fetched from the hub: {words[0] if words else type(e).__name__}"
        ) from e


def _load(folder: Path, device: torch.device, dtype: str) -> Any:
    from transformers import AutoModelForImageTextToText

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder}: no *.safetensors there; other formats can hold code and are not read")
    for file in files:  # which of many shards, before any is read
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as e:
            raise ModelError(f"{file}: truncated or not safetensors ({e})") from e
    wanted = dtype if dtype != "auto" else "float32" if device.type == "cpu" else "bfloat16"
    try:
        check_size(folder, files)
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=getattr(torch, wanted), use_safetensors=True, local_files_only=True,
            ignore_mismatched_sizes=True, output_loading_info=True,
        )  # fmt: skip
    except ModelError:
        raise
    except Exception as e:  # each library has its own
        words = " ".join(str(e).split())[:300] or type(e).__name__
        raise ModelError(f"{folder}: cannot be loaded: {words}") from e
    model, info = loaded
    if unlike := sorted(info["mismatched_keys"]):
        name, held, asked = unlike[0]
        raise ModelError(f"{folder}: {name} is {tuple(held)}, but config.json asks for {tuple(asked)}")
    if missing := info["missing_keys"]:  # they would be filled with noise
        raise ModelError(f"{folder} lacks {len(missing)} weights, the first: {min(missing)}")
    return model.eval().requires_grad_(False).to(device)


def _stops(model: Any) -> frozenset[int]:
    given = getattr(model.generation_config, "eos_token_id", None)
    return frozenset(given if isinstance(given, list) else [given] if given is not None else [])
