"""Whisper checkpoints from disk or hub, of four kinds, into one: safetensors with its shape in the header.

| kind | found by |
|---|---|
| this project's own | `*.safetensors` with `format: penstock.whisper` in its header |
| Hugging Face | a folder (or hub id) with `config.json` and `model.safetensors` |
| OpenAI | `*.pt` with `dims` and `model_state_dict` |
| published causal ones | `*.pt` with `dims`, `cfg` and `state_dict`; adapters are merged |

A `.pt` is read with `weights_only=True`, converted once beside itself, and the copy is used from then on as long
as the original's SHA-256 is the one in the header.
"""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .causal_whisper import CausalWhisper
from .int8 import Int8Linear, quantize_linears
from .lora import merge
from .tokens import Tokens, WordTokens
from .whisper_dims import BlockPlan, WhisperDims

log = logging.getLogger(__name__)

FORMAT = "penstock.whisper"
OWN = "causal.safetensors"
FIXTURE = Path(__file__).parent / "data" / "asr_fixture.safetensors"
_POSITIONS = "encoder.positional_embedding"
_TIED = "proj_out.weight"  # Hugging Face's name of the output layer, which is the embedding

_HF_NAMES = (
    (r"^model\.", ""),
    (r"\.layers\.", ".blocks."),
    (r"\.self_attn_layer_norm\.", ".attn_ln."),
    (r"\.encoder_attn_layer_norm\.", ".cross_attn_ln."),
    (r"\.self_attn\.", ".attn."),
    (r"\.encoder_attn\.", ".cross_attn."),
    (r"\.q_proj\.", ".query."),
    (r"\.k_proj\.", ".key."),
    (r"\.v_proj\.", ".value."),
    (r"\.out_proj\.", ".out."),
    (r"\.fc1\.", ".mlp.0."),
    (r"\.fc2\.", ".mlp.2."),
    (r"\.final_layer_norm\.", ".mlp_ln."),
    (r"^encoder\.layer_norm\.", "encoder.ln_post."),
    (r"^decoder\.layer_norm\.", "decoder.ln."),
    (r"^decoder\.embed_tokens\.", "decoder.token_embedding."),
    (r"\.embed_positions\.weight$", ".positional_embedding"),
)


class CheckpointError(ValueError):
    """A file that is no usable checkpoint; says which and why."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Weights with OpenAI's names, their shape, and what the file says on how to stream them."""

    dims: WhisperDims
    state: Mapping[str, Tensor]
    plan: BlockPlan | None = None  # None: the weights were not trained to be causal
    words: tuple[str, ...] = ()  # a fixture's vocabulary; else a tokenizer.json is needed


def read(source: str | Path) -> Checkpoint:
    """From a file, a folder or a hub id such as `openai/whisper-tiny`. Raises: CheckpointError."""
    path = Path(source)
    if not path.exists():
        text = str(source)
        if re.fullmatch(r"[\w.-]+/[\w.-]+", text):
            return _hugging_face(_pull(text))
        raise CheckpointError(
            f"{text!r} is neither a file, a folder nor a hub id such as openai/whisper-tiny"
        )
    if path.is_dir():
        own = path / OWN  # what `penstock models` makes of a published causal one
        return _own(own) if own.is_file() else _hugging_face(path)
    if path.suffix == ".safetensors":
        return _own(path)
    if path.suffix in (".pt", ".pth", ".bin"):
        return _converted(path)
    raise CheckpointError(f"{path}: unknown kind {path.suffix!r}; accepted: .safetensors, .pt, or a folder")


def build(
    checkpoint: Checkpoint, *, device: str = "cpu", dtype: torch.dtype = torch.float32, int8: str = "none"
) -> CausalWhisper:
    """A model with these weights. `int8`: none, head (the output layer) or all (every linear layer).

    Raises: CheckpointError, naming what is missing, left over or of another shape.
    """
    if int8 not in ("none", "head", "all"):
        raise ValueError(f"int8 {int8!r} is not possible; accepted: none, head, all")
    model = CausalWhisper(checkpoint.dims)
    state = {
        k: v
        for k, v in checkpoint.state.items()
        if k != _POSITIONS or v.shape == model.encoder.positional_embedding.shape
    }
    want = {k: v.shape for k, v in model.state_dict().items()}
    missing = sorted(want.keys() - state.keys() - {_POSITIONS})
    extra = sorted(state.keys() - want.keys())
    if missing or extra:
        raise CheckpointError(
            f"the weights do not fit the shape they claim: {len(missing)} missing "
            f"(first: {missing[:1]}), {len(extra)} left over (first: {extra[:1]})"
        )
    for name, value in state.items():
        if value.shape != want[name]:
            raise CheckpointError(f"{name} has shape {tuple(value.shape)}; its dims need {tuple(want[name])}")
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{name} holds NaN or infinity")
    model.load_state_dict({k: v.float() for k, v in state.items()}, strict=False)
    model = model.eval().requires_grad_(False).to(device, dtype)
    return quantized(model, int8)


def quantized(model: CausalWhisper, int8: str) -> CausalWhisper:
    """Put int8 layers in place: the output layer (head), or that and every linear layer (all)."""
    if int8 == "all":
        quantize_linears(model)
    if int8 in ("head", "all"):
        model.decoder.head = Int8Linear(model.decoder.token_embedding.weight)
    return model


def vocabulary(checkpoint: Checkpoint, source: str | Path, language: str = "en") -> Tokens:
    """The checkpoint's own words, or the tokenizer.json beside it. Raises: FileNotFoundError, ValueError."""
    if checkpoint.words:
        return WordTokens(checkpoint.words)
    from .tokens import WhisperTokens  # needs the hub extra only when it is used

    path = Path(source)
    if not path.exists():
        path = _pull(str(source))
    folder = path if path.is_dir() else path.parent
    return WhisperTokens.load(folder, language, checkpoint.dims.n_vocab)


def save(checkpoint: Checkpoint, path: Path, **more: str) -> None:
    """Write this project's own kind."""
    meta = {"format": FORMAT, "dims": json.dumps(asdict(checkpoint.dims)), **more}
    if checkpoint.plan:
        meta["plan"] = json.dumps(asdict(checkpoint.plan))
    if checkpoint.words:
        meta["words"] = json.dumps(checkpoint.words)
    state = {k: v.contiguous().clone() for k, v in checkpoint.state.items() if k != _POSITIONS}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path, metadata=meta)


# ---------------------------------------------------------------- the kinds


def _own(path: Path) -> Checkpoint:
    state, meta = _safetensors(path)
    if meta.get("format") != FORMAT:
        if (path.parent / "config.json").is_file():
            return _hugging_face(path.parent)
        raise CheckpointError(
            f"{path}: not {FORMAT} and no config.json beside it; a Whisper folder has both files"
        )
    try:
        plan = BlockPlan(**json.loads(meta["plan"])) if "plan" in meta else None
        words = tuple(json.loads(meta.get("words", "[]")))
        return Checkpoint(_dims(json.loads(meta["dims"]), path), state, plan, words)
    except (KeyError, TypeError, json.JSONDecodeError) as e:
        raise CheckpointError(f"{path}: its header is damaged ({e})") from e


def _hugging_face(folder: Path) -> Checkpoint:
    config, weights = folder / "config.json", folder / "model.safetensors"
    for file in (config, weights):
        if not file.is_file():
            raise CheckpointError(
                f"{file} is missing; a Whisper folder has config.json and model.safetensors"
            )
    c = json.loads(config.read_text())
    if c.get("model_type") != "whisper":
        raise CheckpointError(f"{config}: model_type is {c.get('model_type')!r}; accepted: 'whisper'")
    try:
        dims = WhisperDims(
            c["num_mel_bins"], c["max_source_positions"], c["d_model"], c["encoder_attention_heads"],
            c["encoder_layers"], c["vocab_size"], c["max_target_positions"], c["d_model"],
            c["decoder_attention_heads"], c["decoder_layers"],
        )  # fmt: skip
    except KeyError as e:
        raise CheckpointError(f"{config} lacks {e}") from e
    state, _ = _safetensors(weights)
    return Checkpoint(dims, {_openai_name(k): v for k, v in state.items() if k != _TIED})


def _openai_name(name: str) -> str:
    for pattern, ours in _HF_NAMES:
        name = re.sub(pattern, ours, name)
    return name


def _converted(path: Path) -> Checkpoint:
    """A pickled checkpoint by its safetensors copy, made now if there is none of this very file."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    copy = path.with_suffix(".penstock.safetensors")
    if copy.is_file():
        try:
            if _safetensors(copy)[1].get("source_sha256") == digest:
                return _own(copy)
        except CheckpointError as e:
            log.warning("converting again: %s", e)
    checkpoint = _pickled(path)
    try:
        save(checkpoint, copy, source_sha256=digest)
    except OSError as e:  # a read-only folder: convert at each start
        log.warning("%s could not be written (%s); %s is read as it is", copy, e, path)
    return checkpoint


def _pickled(path: Path) -> Checkpoint:
    try:
        raw: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as e:
        # torch's own text proposes to read it unsafely
        raise CheckpointError(
            f"{path}: truncated, or no checkpoint that can be read safely (weights only, no code)"
        ) from e
    keys = set(raw) if isinstance(raw, dict) else set[str]()
    if {"dims", "model_state_dict"} <= keys:
        return Checkpoint(_dims(raw["dims"], path), raw["model_state_dict"] | {})
    if {"dims", "cfg", "state_dict"} <= keys:
        return causal(raw, path)
    raise CheckpointError(
        f"{path} has {', '.join(sorted(map(str, keys))) or 'no keys'}; accepted: dims and model_state_dict "
        "(OpenAI), or dims, cfg and state_dict (causal)"
    )


def causal(raw: Mapping[str, Any], path: Path) -> Checkpoint:
    """A published causal checkpoint as torch reads it, its adapters merged. Raises: CheckpointError."""
    cfg = raw["cfg"]
    try:
        gran, extra = int(cfg["gran"]), int(cfg.get("extra_gran_blocks", 0))
    except (KeyError, TypeError, ValueError) as e:
        raise CheckpointError(f"{path}: cfg needs gran and extra_gran_blocks ({e})") from e
    state = {str(k).removeprefix("model."): v for k, v in raw["state_dict"].items()}
    state = {k: v for k, v in state.items() if k not in ("encoder.mask", "decoder.mask")}
    try:
        merged = merge(state)
    except ValueError as e:
        raise CheckpointError(f"{path}: {e}") from e
    return Checkpoint(_dims(raw["dims"], path), merged, BlockPlan(gran, gran * (1 + extra)))


def _dims(raw: Any, path: Path) -> WhisperDims:
    names = {f.name for f in fields(WhisperDims)}
    if not isinstance(raw, dict) or names - raw.keys():
        lacks = names - set(raw) if isinstance(raw, dict) else names
        raise CheckpointError(f"{path}: dims lack {', '.join(sorted(lacks))}")
    try:
        return WhisperDims(**{name: int(raw[name]) for name in names})
    except (TypeError, ValueError) as e:
        raise CheckpointError(f"{path}: {e}") from e


def _safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(str(path), "pt") as file:
            return {k: file.get_tensor(k) for k in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as e:
        raise CheckpointError(f"{path}: truncated or not safetensors ({e})") from e


def _pull(name: str) -> Path:
    """The hub's copy, downloaded once. Raises: CheckpointError."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ModuleNotFoundError as e:
        raise CheckpointError(
            f"{name!r} is a hub id; that needs the extra: pip install 'penstock[hub]'"
        ) from e
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "model.safetensors"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as e:
        raise CheckpointError(f"{name!r} could not be fetched from the hub ({str(e).splitlines()[0]})") from e
