"""Which device a model is put on, of those that are here."""

from __future__ import annotations

import torch


def pick(name: str) -> str:
    """`auto`: `cuda` where there is a GPU, else `cpu`; all other names as they are.

    Raises: ValueError when this machine has no such device.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda"):
        here = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(name.partition(":")[2] or 0) >= here:
            gpus = ", ".join(f"cuda:{i}" for i in range(here)) or "no GPU that it can use"
            raise ValueError(
                f"device {name!r} is not here: PyTorch {torch.__version__} finds {gpus}; accepted here: auto, cpu"
            )
    elif name == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device {name!r} is not here; accepted here: auto, cpu")
    return name
