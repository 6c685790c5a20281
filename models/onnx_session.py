"""onnxruntime on the CPU, as all models here want it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray


def cpu_session(graph: bytes | Path, weights: Mapping[str, NDArray[np.float32]] | None = None) -> Any:
    """An `InferenceSession`, thread-safe. weights: of a graph that keeps them outside; they are copied."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # a core a stream: the steadiest when streams share a machine
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if weights:
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(w) for w in weights.values()]
        options.add_external_initializers(list(weights), values)
    source = graph if isinstance(graph, bytes) else str(graph)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
