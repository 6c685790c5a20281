"""Causal Wan from a folder in diffusers' layout, with the distilled weights in place of its own where they are there.

    transformer/config.json and *.safetensors (or generator.safetensors beside it: Self-Forcing's, StreamDiffusionV2's)
    vae/  text_encoder/  tokenizer/  and perhaps decoder.safetensors (TAEHV, `taew2_1`)

Needs the extra `hub` (diffusers, transformers).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .causal_wan import Window, load_causal_wan
from .taehv import load_tiny_decoder
from .wan_video import WanVideo

WORDS = 512  # that Wan was trained with; shorter prompts are filled up with zeros
_OURS = ("patch_size", "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "text_dim")
_CONFIG = (
    *_OURS,
    "freq_dim",
    "ffn_dim",
    "num_layers",
    "cross_attn_norm",
    "qk_norm",
    "eps",
    "rope_max_seq_len",
)


def load_wan_video(
    folder: Path,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    window: int = 6,
    sink: int = 1,
    compiled: bool = False,
) -> WanVideo:
    """The model, its autoencoder and its text encoder. Safetensors only.

    Raises: ValueError for a folder that lacks something or holds something else.
    """
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
    from safetensors import SafetensorError

    looked = Window(capacity=window, sink=sink)
    config = _config(folder / "transformer" / "config.json")
    generator = folder / "generator.safetensors"
    files = [generator] if generator.exists() else sorted((folder / "transformer").glob("*.safetensors"))
    if not files:
        raise ValueError(
            f"{folder} has no weights: neither generator.safetensors nor transformer/*.safetensors"
        )
    transformer: Any = load_causal_wan(files, config, looked)
    transformer = transformer.to(device=device, dtype=dtype)
    if compiled:
        transformer.denoise = torch.compile(transformer.denoise)
    try:
        # low memory needs accelerate; without it diffusers warns at length
        vae: Any = AutoencoderKLWan.from_pretrained(
            folder, subfolder="vae", use_safetensors=True, low_cpu_mem_usage=False
        )
    except (OSError, SafetensorError) as e:
        raise ValueError(f"{folder}/vae is no autoencoder of Wan: {e}") from e
    vae = vae.to(device=device, dtype=dtype).eval().requires_grad_(False)
    small = folder / "decoder.safetensors"
    decoder = load_tiny_decoder(small).to(device=device, dtype=dtype) if small.exists() else None
    return WanVideo(folder.name, transformer, vae, _text_encoder(folder, device, dtype), decoder)


def _config(path: Path) -> dict[str, Any]:
    try:
        written: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise ValueError(f"{path} is no model's configuration: {e}") from e
    if written.get("image_dim") is not None:
        raise ValueError(f"{path} is of the image-to-video kind; text-to-video models are taken")
    return {
        k: tuple(v) if isinstance(v, list) else v
        for k, v in written.items()
        if k in _CONFIG and v is not None
    }


def _text_encoder(folder: Path, device: str, dtype: torch.dtype) -> Callable[[str], Tensor]:
    """prompt → (1, WORDS, D), zeros where there is no word, as in Wan's own pipeline."""
    from safetensors import SafetensorError
    from transformers import AutoTokenizer, UMT5EncoderModel

    try:
        words: Any = AutoTokenizer.from_pretrained(folder, subfolder="tokenizer")
        encoder: Any = UMT5EncoderModel.from_pretrained(
            folder, subfolder="text_encoder", use_safetensors=True
        )
    except (OSError, ValueError, SafetensorError) as e:
        raise ValueError(f"{folder} has no text encoder: {e}") from e
    encoder = encoder.to(device=device, dtype=dtype).eval().requires_grad_(False)

    @torch.inference_mode()
    def encode(prompt: str) -> Tensor:
        read = words(prompt, padding="max_length", max_length=WORDS, truncation=True, return_tensors="pt")
        mask = read.attention_mask.to(device)
        hidden = encoder(read.input_ids.to(device), mask)[0]
        return hidden * mask[..., None].to(hidden.dtype)

    return encode
