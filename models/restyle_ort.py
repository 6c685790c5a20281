"""`tiny-restyle` in onnxruntime: on CPUs without bf16 the quickest way to run it.

The graph (`data/tiny-restyle.onnx`, some tens of kB) comes without weights: they are taken from the same safetensors file as
torch's, so that the two never differ.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor

from .restyle_net import RestyleNet

GRAPH = Path(__file__).parent / "data" / "tiny-restyle.onnx"


class OrtForward:
    """RestyleNet.forward by onnxruntime, float32 on the CPU. Any number of rows, any size."""

    def __init__(self, net: RestyleNet, *, threads: int = 1, graph: Path = GRAPH) -> None:
        """threads: within one operator; one core a session is the steadiest when sessions share a machine."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        weights = {k: v.float().contiguous().numpy() for k, v in net.state_dict().items()}
        names = [n for n in weights if not n.startswith(("words.", "text."))]  # the prompt's vector comes in
        # onnxruntime reads the arrays when the session is made; it copies them
        options.add_external_initializers(
            names, [ort.OrtValue.ortvalue_from_numpy(weights[n]) for n in names]
        )
        self._session: Any = ort.InferenceSession(
            graph.read_bytes(), options, providers=["CPUExecutionProvider"]
        )

    def __call__(
        self, noisy: Tensor, source: Tensor, previous: Tensor, sigma: Tensor, prompt: Tensor
    ) -> Tensor:
        """As RestyleNet.forward."""
        tensors = {"noisy": noisy, "source": source, "previous": previous, "sigma": sigma, "prompt": prompt}
        feed = {name: np.ascontiguousarray(t.numpy()) for name, t in tensors.items()}
        return torch.from_numpy(self._session.run(["x0"], feed)[0])
