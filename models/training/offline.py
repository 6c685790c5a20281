"""The reference decode: the whole audio at once, greedily, with what streaming is compared to."""

from __future__ import annotations

import torch
from torch import Tensor

from ..causal_whisper import CausalWhisper
from ..tokens import Tokens
from ..whisper_dims import BlockPlan


@torch.no_grad()
def transcribe(model: CausalWhisper, mel: Tensor, plan: BlockPlan, tokens: Tokens) -> str:
    """(M, 2T) mel, block-causally encoded → text."""
    device = model.like.device
    audio = model.encoder(mel[None, :, : mel.shape[1] // 2 * 2].to(device), plan)
    banned = torch.tensor(list(tokens.banned), dtype=torch.long, device=device)
    said: list[int] = []
    while len(said) < model.dims.n_text_ctx - len(tokens.prefix):
        logits = model.decoder(torch.tensor([[*tokens.prefix, *said]], device=device), audio)[0, -1]
        best = int(logits.index_fill(0, banned, -torch.inf).argmax())
        if best == tokens.eot:
            break
        said.append(best)
    return tokens.decode(said).strip()
