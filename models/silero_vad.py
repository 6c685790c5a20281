"""Silero VAD: is somebody speaking in these 32 ms? The network of the silero-vad package, on onnxruntime.

Weights only; the state of a stream is an argument. 0.1 ms of one core for each 32 ms window.

Source: https://github.com/snakers4/silero-vad (MIT), version 6, 16 kHz branch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .onnx_session import cpu_session

RATE_HZ = 16_000
WINDOW = 512  # samples a step: the network was trained on this length only
_CONTEXT = 64  # samples of the window before, put in front of each


@dataclass(slots=True)
class VadState:
    """What one stream remembers."""

    lstm: NDArray[np.float32] = field(default_factory=lambda: np.zeros((2, 1, 128), np.float32))  # h and c
    context: NDArray[np.float32] = field(default_factory=lambda: np.zeros((1, _CONTEXT), np.float32))


class SileroVad:
    """Shared weights; thread-safe, since onnxruntime sessions are and the state is the caller's."""

    def __init__(self, path: Path) -> None:
        self._session = cpu_session(path)
        self._rate = np.array(RATE_HZ, np.int64)

    def init_state(self) -> VadState:
        return VadState()

    def step(self, window: NDArray[np.float32], state: VadState) -> float:
        """`window`: (512,) float32 in −1…1 at 16 kHz → probability of speech; `state` moves on."""
        if window.shape != (WINDOW,):
            raise ValueError(f"a VAD window has {WINDOW} samples, not {window.shape}")
        x = np.concatenate([state.context, window[None, :]], axis=1)  # (1, 64 + 512)
        probability, lstm = self._session.run(None, {"input": x, "state": state.lstm, "sr": self._rate})
        state.lstm = np.asarray(lstm, np.float32)
        state.context = x[:, -_CONTEXT:]
        return float(np.asarray(probability)[0, 0])


@cache
def load() -> SileroVad:
    """The process's one copy of the weights. Raises: FileNotFoundError, naming the package to install."""
    # find_spec does not run the package, whose __init__ imports torch and takes seconds
    spec = find_spec("silero_vad")
    folders = spec.submodule_search_locations if spec else None
    path = Path(next(iter(folders), "")) / "data" / "silero_vad.onnx" if folders else None
    if path is None or not path.is_file():
        raise FileNotFoundError(
            "the voice activity network is missing: it comes in the package silero-vad>=6.2"
        )
    return SileroVad(path)
