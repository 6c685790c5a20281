"""A network of transformers and its tokenizer from a folder, refused in words where anything does not fit."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from .hub_folder import first_line, hub_folder

log = logging.getLogger(__name__)


def read_folder(source: str, stage: str, example: str, kind: str) -> tuple[Path, Any]:
    """source: a folder, a hub id or a name of `penstock models` → its folder and tokenizer (of the package tokenizers).

    kind: the model_type that config.json must have. Raises: ValueError in words.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as e:
        raise ValueError(f"{stage} needs the extra: pip install 'penstock[hub]'") from e
    folder = hub_folder(source, stage, example)
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder / name} is missing; a folder for {stage} has config.json, tokenizer.json, weights"
            )
    try:
        found = json.loads((folder / "config.json").read_text()).get("model_type")
        if found != kind:
            raise ValueError(f"model_type is {found!r}; accepted: {kind!r}")
        return folder, Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as e:  # each library has its own
        raise ValueError(f"{folder} cannot be read: {first_line(e)}") from e


def read_network(folder: Path, network: str, tokenizer: Any, device: str, **options: Any) -> Any:
    """network: a class of transformers. fp32, for inference. Raises: ValueError, naming what is missing."""
    try:
        import transformers

        made: Any = getattr(transformers, network)
    except (ImportError, AttributeError) as e:
        raise ValueError(f"{network} needs a newer extra: pip install -U 'penstock[hub]'") from e
    try:
        model, info = made.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True, **options
        )
    except Exception as e:
        raise ValueError(f"{folder} cannot be read: {first_line(e)}") from e
    if missing := info["missing_keys"]:
        raise ValueError(f"{folder} lacks {len(missing)} weights, the first: {min(missing)}")
    if foreign := info["unexpected_keys"]:
        log.warning(
            "%s holds %d weights that are not used, the first: %s", folder, len(foreign), min(foreign)
        )
    if tokenizer.get_vocab_size() > model.config.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {tokenizer.get_vocab_size()} tokens, the model {model.config.vocab_size}"
        )
    return model.float().eval().requires_grad_(False).to(device)
