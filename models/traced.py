"""A network as one call into C++, which gives the interpreter away from its first operator to its last.

Run one by one from Python, each of some 150 operators asks for the interpreter's lock again, and beside a busy event loop
each asks in vain for up to 5 ms: a forward of 22 ms took 75 in the server. Traced it also runs a fifth faster.

PyTorch calls tracing deprecated, in favour of `torch.compile` and `torch.export`. Neither stands in for it yet, as of 2.13:
the first, and AOTInductor with the second, want a C++ compiler on the user's machine and compile for minutes; an exported
program without it is called operator by operator from Python, as slow as the network itself (benchmarks/LOG.md); and the
interpreter for exported programs that torch brings along (nativert) cannot be made from Python. Once it can, it belongs here.
Where tracing is gone, the network runs as it is.
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
        # of its end, see above, and of sizes that become constants: what is traced has one size, or the path is the same at
        # all; tests hold each to its network
        warnings.simplefilter("ignore")
        return jit.trace(net, example, check_trace=False)
