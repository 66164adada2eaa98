"""Weights of a float ViT read back from an ONNX export, under transformers' names.

PyTorch's TorchScript exporter (optimum, Xenova's `vision_model.onnx`) keeps the names of all
parameters but the weights of linears, which it transposes and numbers; the names of their MatMul
nodes carry the module's path. A parameter that equals another is an Identity of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..compat import require
from ..errors import ModelError
from .checkpoint import explain

QUANTIZED = (
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "ConvInteger",
    "MatMulNBits",
    "QLinearMatMul",
)


def read_onnx(path: Path) -> dict[str, Tensor]:
    """Parameters by transformers' names, float32.

    Raises:
        ModelError: unreadable, quantized, or written by another exporter.
    """
    onnx = require("onnx", "export")
    if not path.is_file():
        raise ModelError(f"there is no file {path}")
    try:
        graph = onnx.load(str(path)).graph
    except Exception as error:  # protobuf raises kinds of its own
        raise ModelError(f"{path} cannot be read: {explain(error)}") from error
    kinds = {node.op_type for node in graph.node}
    lossy = sorted(kinds.intersection(QUANTIZED))
    if lossy:
        raise ModelError(
            f"{path} is quantized ({', '.join(lossy)}), so its weights are no longer the model's; "
            "take the file in float, e.g. vision_model.onnx"
        )
    if not any(node.name.startswith("/") for node in graph.node):
        raise ModelError(
            f"the nodes of {path} carry no paths of modules; read are files of PyTorch's "
            "TorchScript exporter, such as optimum's"
        )
    arrays = {tensor.name: tensor for tensor in graph.initializer}
    out: dict[str, Tensor] = {}
    used: set[str] = set()
    for node in graph.node:
        held = [name for name in node.input if name in arrays]
        if node.op_type == "Identity" and held:
            out[node.output[0]] = _tensor(arrays[held[0]])
        elif node.op_type == "MatMul" and len(held) == 1 and "::" in held[0]:
            module = ".".join(node.name.strip("/").split("/")[:-1])
            out[f"{module}.weight"] = _tensor(arrays[held[0]]).T
            used.add(held[0])
    for name, tensor in arrays.items():
        # constants of the graph are numbers, shapes and indices; parameters have an axis
        is_float = tensor.data_type in (1, 10, 11, 16)  # float32, float16, float64, bfloat16
        if is_float and tensor.dims and name not in used and not name.startswith("/"):
            out[name] = _tensor(tensor)
    return out


def _tensor(proto: Any) -> Tensor:
    from onnx import numpy_helper

    return torch.from_numpy(np.array(numpy_helper.to_array(proto), np.float32))
