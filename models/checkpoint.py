"""Do these tensors fit this network?"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def misfit(net: nn.Module, state: Mapping[str, Tensor]) -> str:
    """In words, which tensors are missing, left over or of another shape; "" when all fit."""
    wanted = {k: tuple(v.shape) for k, v in net.state_dict().items()}
    found = {k: tuple(v.shape) for k, v in state.items()}
    wrong = sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))
    if not wrong:
        return ""
    first = wrong[0]
    return (
        f"{len(wrong)} tensors differ, the first is {first!r}: "
        f"{found.get(first, 'missing')}, expected {wanted.get(first, 'none')}"
    )
