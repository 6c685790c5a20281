"""`tiny-restyle` in onnxruntime: on CPUs without bf16 the quickest way to run it.

The graph (`data/tiny-restyle.onnx`, some tens of kB) comes without weights: they are taken from the same safetensors file as
torch's, so that the two never differ.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .onnx_session import cpu_session
from .restyle_net import RestyleNet

GRAPH = Path(__file__).parent / "data" / "tiny-restyle.onnx"


class OrtForward:
    """RestyleNet.forward by onnxruntime, float32 on the CPU. Any number of rows, any size."""

    def __init__(self, net: RestyleNet) -> None:
        # the prompt's vector comes in
        inside = {k: v for k, v in net.state_dict().items() if not k.startswith(("words.", "text."))}
        weights = {k: v.float().contiguous().numpy() for k, v in inside.items()}
        self._session = cpu_session(GRAPH.read_bytes(), weights)

    def __call__(
        self, noisy: Tensor, source: Tensor, previous: Tensor, sigma: Tensor, prompt: Tensor
    ) -> Tensor:
        """As RestyleNet.forward."""
        tensors = {"noisy": noisy, "source": source, "previous": previous, "sigma": sigma, "prompt": prompt}
        feed = {name: np.ascontiguousarray(t.numpy()) for name, t in tensors.items()}
        return torch.from_numpy(self._session.run(["x0"], feed)[0])
