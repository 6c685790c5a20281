"""Linear layers with int8 weights: a decoder's output layer reads 80 MB a token in fp32, 20 MB so."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LEVELS = 127
_GPU_ROWS = 17  # the least that CUDA's int8 product takes


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """(R, D) → int8 (R, D) and float32 scales (R, 1), so that x ≈ int8 · scale."""
    scale = x.float().abs().amax(1, keepdim=True).clamp(min=1e-8) / _LEVELS
    return (x.float() / scale).round().to(torch.int8), scale


class Int8Linear(nn.Module):
    """Symmetric int8 weights, one scale an output; inputs are quantised row by row as they come.

    The result has the dtype of `result`; inputs of any leading shape.
    """

    weight: Tensor  # (Out, In) int8
    scale: Tensor  # (Out,) float32

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, result: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        q, scale = quantize_rows(weight.detach())
        self.register_buffer("weight", q)
        self.register_buffer("scale", scale[:, 0].contiguous())
        self.bias = None if bias is None else nn.Parameter(bias.detach().float(), requires_grad=False)
        self.result = result

    def forward(self, x: Tensor) -> Tensor:
        """(…, In) → (…, Out)."""
        flat = x.reshape(-1, x.shape[-1])
        rows = flat.shape[0]
        q, scale = quantize_rows(flat)
        if x.is_cuda and rows < _GPU_ROWS:
            q = torch.cat([q, q.new_zeros(_GPU_ROWS - rows, q.shape[1])])
        y = torch._int_mm(q, self.weight.t())[:rows].float() * scale * self.scale  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        if self.bias is not None:
            y = y + self.bias
        return y.to(self.result).reshape(*x.shape[:-1], -1)


def quantize_linears(module: nn.Module) -> int:
    """Replace every nn.Linear below `module` by its int8 form. Returns how many."""
    count = 0
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear):
            setattr(module, name, Int8Linear(child.weight, child.bias, child.weight.dtype))
            count += 1
        else:
            count += quantize_linears(child)
    return count
