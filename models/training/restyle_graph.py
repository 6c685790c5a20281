"""Export `tiny-restyle`'s graph without its weights: `python -m penstock.models.training.restyle_graph`. Needs `onnx`."""

from __future__ import annotations

import io
import warnings
from typing import Any

import torch

from ..restyle_net import RestyleNet
from ..restyle_ort import GRAPH
from ..restyle_prompt import SIZE


def exported() -> bytes:
    """The ONNX graph; its initializers say that they are stored elsewhere, under their names in the state dict.

    Raises: ModuleNotFoundError without the package `onnx`.
    """
    import onnx

    net = RestyleNet(SIZE).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter))  # equal tensors would be exported as one
    picture = torch.randn(2, 3, 64, 64)
    prompt = net.encode(torch.ones(2, 8, dtype=torch.long)).detach()
    free: dict[str, dict[int, str]] = {
        n: {0: "rows", 2: "h", 3: "w"} for n in ("noisy", "source", "previous", "x0")
    }
    free |= {"sigma": {0: "rows"}, "prompt": {0: "rows"}}
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # the newer exporter needs one more package and gives a graph three times as long
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            net,
            (picture, picture, picture, torch.tensor([0.8, 0.4]), prompt),
            buffer,  # pyright: ignore[reportArgumentType]
            dynamo=False,
            opset_version=17,
            input_names=["noisy", "source", "previous", "sigma", "prompt"],
            output_names=["x0"],
            dynamic_axes=free,
        )
    model: Any = onnx.load_from_string(buffer.getvalue())
    parameters = set(net.state_dict())
    for tensor in model.graph.initializer:
        if tensor.name in parameters:
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="tiny-restyle")
    return bytes(model.SerializeToString())


def main() -> None:
    """Write the graph into models/data."""
    GRAPH.write_bytes(exported())
    print(f"{GRAPH}  {GRAPH.stat().st_size} bytes")


if __name__ == "__main__":
    main()
