"""pocket-tts: what a step costs at its true shape, and its streaming against one pass."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from penstock.models import pocket_voice
from penstock.models.pocket_stream import PocketStream
from penstock.models.voice import NoVoice
from report import line, percentile

TOKENS, PROMPT, FRAMES = 20, 126, 60  # of a clause, of a speaker's prompt, 4.8 s


def pocket() -> dict[str, Any]:
    """Null with the reason where the package is missing."""
    torch.set_num_threads(1)
    try:
        stream, weights = pocket_voice.load().stream, "pulled"
    except NoVoice as e:
        try:
            stream, weights = _random(), f"random ({e})"
        except ImportError as missing:
            line(part="pocket", pocket_step_ms=None, reason=f"{e}; {missing}")
            return {"pocket_step_ms": None, "pocket_reason": str(e)}
    lm, codec = stream.model.flow_lm, stream.model.mimi
    stateful = stream._stateful
    speaker = stateful.init_states(lm, batch_size=1, sequence_length=PROMPT)
    with torch.inference_mode():
        prompt = torch.randn(1, PROMPT, lm.dim, generator=torch.Generator().manual_seed(0))
        stream._advance(speaker, prompt, lm.bos_emb.new_zeros(1, 0, lm.ldim))
        state = stream.init_state(
            torch.arange(TOKENS)[None], speaker, noise=torch.Generator().manual_seed(0), tail=FRAMES
        )
        state.limit = FRAMES
        costs, sound, latents = list[float](), list[torch.Tensor](), list[torch.Tensor]()
        begun = time.thread_time()
        while (piece := stream.step(state)) is not None:
            costs.append((time.thread_time() - begun) * 1000)
            begun = time.thread_time()
            sound.append(piece)
            latents.append(state.last)
        fresh = stateful.init_states(codec, batch_size=1, sequence_length=FRAMES * 16)
        whole = codec.decode_from_latent(torch.cat(latents, 1) * lm.emb_std + lm.emb_mean, fresh)[0, 0]
    skip = stream.rate_hz // 100  # the fade at the beginning is ours
    figures: dict[str, Any] = {
        "pocket_weights": weights,
        "pocket_first_step_ms": round(costs[0], 1),
        "pocket_step_ms": round(percentile(costs[1:], 0.5), 1),
        "pocket_step_growth": round(float(np.median(costs[-15:]) / np.median(costs[5:20])), 2),
        "pocket_rtf": round(sum(costs) / (80 * len(costs)), 3),
        "pocket_streaming_apart": float((torch.cat(sound) - whole)[skip:].abs().max()),
    }
    line(part="pocket", frames=len(costs), **figures)
    return figures


def _random() -> PocketStream:
    """The released shape without its weights. Raises: ImportError."""
    import yaml
    from pocket_tts.models import tts_model
    from pocket_tts.models.flow_lm import FlowLMModel
    from pocket_tts.models.mimi import build_mimi
    from pocket_tts.modules import text_conditioner
    from pocket_tts.utils.config import Config

    threads = torch.get_num_threads()
    raw = yaml.safe_load((tts_model.CONFIGS_DIR / "english.yaml").read_text())
    raw["flow_lm"]["lookup_table"]["tokenizer_path"] = "none.json"
    config = Config(**raw)
    given = text_conditioner.build_tokenizer
    text_conditioner.build_tokenizer = lambda *_: None  # type: ignore[assignment,return-value]
    try:
        torch.manual_seed(0)
        lm = FlowLMModel.from_pydantic_config(
            config.flow_lm, latent_dim=config.mimi.quantizer.dimension, insert_bos_before_voice=True
        )
    finally:
        text_conditioner.build_tokenizer = given
    model = tts_model.TTSModel(lm, 0.3, 1, None, 1e9, config)  # it never ends by itself
    model.mimi = build_mimi(config.mimi)
    tts_model.stamp_state_names(model)
    torch.set_num_threads(threads)
    return PocketStream(model.eval().requires_grad_(False))


if __name__ == "__main__":
    pocket()
