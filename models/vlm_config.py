"""What the config.json of a vision-language model must say, before anything is built from it.

transformers fills what is missing with the sizes of its largest published model: gigabytes of noise. So each part must
tell its own sizes, and the whole may not be larger than the weights beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# config.model_type → the types of the language model in it whose attention is rotary, as the rolling cache needs
TEXT_TYPES: dict[str, tuple[str, ...]] = {
    "qwen2_5_vl": ("qwen2_5_vl_text", "qwen2_5_vl"),
    "qwen3_vl": ("qwen3_vl_text",),
    "smolvlm": ("llama",),
    "llava_onevision": ("qwen2",),
    "gemma3": ("gemma3_text",),
}
SIZES = {"hidden_size": 65_536, "num_hidden_layers": 512}  # of the language model: what is accepted at most
MORE = 2.0  # times the weights in the files that the described model may have; tied ones are stored once


class ModelError(ValueError):
    """A model that cannot be used, in words."""


def read_json(path: Path) -> dict[str, Any]:
    """Empty when there is no such file. Raises: ModelError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        raise ModelError(f"{path}: cannot be read: {e}") from e
    if not isinstance(found, dict):
        raise ModelError(f"{path}: cannot be read: holds {type(found).__name__}, not an object of JSON")
    return found


def read_kind(folder: Path) -> str:
    """The family that config.json names, once it says all that is needed. Raises: ModelError."""
    path = folder / "config.json"
    config = read_json(path)
    if not path.exists():
        raise ModelError(
            f"{folder}: no config.json there; a model folder holds config.json and *.safetensors"
        )
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in TEXT_TYPES:
        raise _refused(path, config, "model_type", "", ", ".join(TEXT_TYPES))
    text, where = config.get("text_config"), "text_config."
    if (
        text is None and kind == "qwen2_5_vl"
    ):  # its first checkpoints have the language model's keys at the top
        text, where = config, ""
    if not isinstance(text, dict) or not text:
        raise _refused(path, config, "text_config", "", f"an object with {', '.join(SIZES)}")
    if text.get("model_type", TEXT_TYPES[kind][0]) not in TEXT_TYPES[kind]:
        raise _refused(path, text, "model_type", where, " or ".join(map(repr, TEXT_TYPES[kind])))
    for key, most in SIZES.items():
        value = text.get(key)
        if type(value) is not int or not 1 <= value <= most:
            raise _refused(path, text, key, where, f"a whole number from 1 to {most}")
    vision = config.get("vision_config")
    if not isinstance(vision, dict) or not vision:
        raise _refused(path, config, "vision_config", "", "an object with the sizes of the picture's encoder")
    return kind


def check_size(folder: Path, files: Sequence[Path]) -> None:
    """Is the model that config.json describes about as large as the weights? Nothing is allocated.

    Raises: ModelError; what transformers raises over a config that it cannot use.
    """
    import torch
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModelForImageTextToText

    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    if getattr(config, "quantization_config", None):  # several weights are packed in one number
        return
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(config)
    described = sum(p.numel() for p in model.parameters())
    held = 0
    for file in files:
        with safe_open(file, "pt") as f:
            for name in f.keys():  # noqa: SIM118 - not a mapping
                numbers = 1
                for side in f.get_slice(name).get_shape():
                    numbers *= side
                held += numbers
    if described > MORE * held:
        raise ModelError(
            f"{folder / 'config.json'}: describes a model of {described / 1e6:,.1f} million weights, but *.safetensors "
            f"hold {held / 1e6:,.1f} million; accepted: the config.json that belongs to them, with all its sizes"
        )


def _refused(path: Path, part: Mapping[str, Any], key: str, where: str, accepted: str) -> ModelError:
    value = f"is {part[key]!r:.80}" if key in part else "is missing"
    return ModelError(f"{path}: {where}{key} {value}; accepted: {accepted}")
