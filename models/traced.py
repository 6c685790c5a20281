"""A network as one call into C++, which gives the interpreter away from its first operator to its last.

Run one by one from Python, each of some 150 operators asks for the interpreter's lock again, and beside a busy event loop
each asks in vain for up to 5 ms: a forward of 22 ms took 75 in the server. Traced it also runs a fifth faster.

PyTorch calls tracing deprecated in favour of `torch.compile`, which needs a C++ compiler on the user's machine and compiles
for minutes. Where it is gone, the network runs as it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


@torch.inference_mode()
def traced(net: nn.Module, example: tuple[Tensor, ...]) -> Callable[..., Tensor]:
    """`net`, whose path must not depend on its inputs' values or sizes, on the CPU."""
    jit: Any = torch.jit
    if not hasattr(jit, "trace"):
        return net
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return jit.trace(net, example, check_trace=False)
