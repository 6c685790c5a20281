"""Vision-language models of the true architectures with tiny random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

FAMILIES = ("qwen2_5_vl", "smolvlm", "qwen3_vl", "llava_ov", "gemma3")
# three axes of position, and a rope for each kind of layer: the other three are like one of these
EACH = [f if f in ("qwen2_5_vl", "gemma3") else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES]
WIDTH = 64


def tiny_text_model(family: str, layers: int = 3) -> Any:
    """The text model of a family, seeded, with attention that is not uniform."""
    from penstock.models.rolling_cache import text_model_of

    return text_model_of(tiny_model(family, layers))


def tiny_model(family: str, layers: int = 3) -> Any:
    """The whole model of a family."""
    transformers: Any = pytest.importorskip(
        "transformers", reason="the package transformers is not installed"
    )
    torch.manual_seed(0)
    head = WIDTH // 4
    text: dict[str, Any] = {
        "vocab_size": 200, "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32768,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
    marks = {
        "image_token_id": 150,
        "video_token_id": 151,
        "vision_start_token_id": 152,
        "vision_end_token_id": 153,
    }
    siglip = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 56, "patch_size": 14}  # fmt: skip
    t = transformers
    if family == "qwen2_5_vl":
        vision = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": WIDTH,
                  "patch_size": 14, "fullatt_block_indexes": [0]}  # fmt: skip
        config = t.Qwen2_5_VLConfig(
            text_config={**text, "rope_parameters": rope}, vision_config=vision, **marks
        )
        model = t.Qwen2_5_VLForConditionalGeneration
    elif family == "qwen3_vl":
        vision = {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": WIDTH,
                  "patch_size": 14, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}  # fmt: skip
        rope = {**rope, "mrope_interleaved": True}
        text = {**text, "head_dim": head, "rope_parameters": rope}
        config = t.Qwen3VLConfig(text_config=text, vision_config=vision, **marks)
        model = t.Qwen3VLForConditionalGeneration
    elif family == "smolvlm":
        text = {**text, "model_type": "llama"}
        config = t.SmolVLMConfig(text_config=text, vision_config=siglip, scale_factor=2, image_token_id=150)
        model = t.SmolVLMForConditionalGeneration
    elif family == "llava_ov":
        text = {**text, "model_type": "qwen2"}
        siglip = {**siglip, "model_type": "siglip_vision_model"}
        config = t.LlavaOnevisionConfig(
            text_config=text, vision_config=siglip, image_token_index=150, video_token_index=151
        )
        model = t.LlavaOnevisionForConditionalGeneration
    elif family == "gemma3":
        kinds = (["sliding_attention", "full_attention"] * layers)[:layers]
        text = {
            **text,
            "head_dim": head,
            "sliding_window": 64,
            "layer_types": kinds,
            "query_pre_attn_scalar": head,
        }
        config = t.Gemma3Config(
            text_config=text, vision_config=siglip, image_token_index=150, mm_tokens_per_image=4
        )
        model = t.Gemma3ForConditionalGeneration
    else:
        raise ValueError(f"no family {family!r}; there are: {', '.join(FAMILIES)}")
    config._attn_implementation = "sdpa"
    whole = model(config).eval().requires_grad_(False)
    for p in whole.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, 0, 0.15)
    return whole


_WORDS = "what do you see is it red blue yes no has this happened answer or a the box moving watch live video in one two"
_TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m.role }} {% for c in m.content %}"
    "{% if c.type == 'image' %}PICTURE {% else %}{{ c.text }} {% endif %}{% endfor %}<|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)


def write_checkpoint(folder: Path, family: str, layers: int = 3) -> None:
    """A checkpoint of the true format: config, safetensors, tokenizer with chat template, preprocessor numbers."""
    import json

    from penstock.models.vlm_hub import FAMILIES
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    model = tiny_model(family, layers)
    model.config._attn_implementation = None
    model.save_pretrained(folder, safe_serialization=True)
    picture = FAMILIES[model.config.model_type][0]
    vocab = {
        w: i for i, w in enumerate(["<pad>", "<bos>", "<|im_end|>", "<unk>", *sorted(set(_WORDS.split()))])
    }
    vocab |= {f"w{i}": i for i in range(len(vocab), 150)}
    special = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<image>", "<start_of_image>",
               "<end_of_image>", "<fake_token_around_image>", "<global-img>", "<|im_start|>"]  # fmt: skip
    vocab |= {w: 150 + i for i, w in enumerate(special)}
    vocab |= {"system": 170, "user": 171, "assistant": 172}
    its = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    its.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    its.add_special_tokens([AddedToken(w, special=True) for w in (*special, "<|im_end|>", "<bos>")])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=its, eos_token="<|im_end|>", unk_token="<unk>", pad_token="<pad>"
    )
    fast.chat_template = _TEMPLATE.replace("PICTURE", picture)
    fast.save_pretrained(folder)
    numbers = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
    (folder / "preprocessor_config.json").write_text(json.dumps(numbers))
