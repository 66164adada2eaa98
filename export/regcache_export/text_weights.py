"""Smaller forms of a text tower's graph: weights in float16, or in INT8 by dynamic quantization."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from regcache_engines.onnxruntime_session import import_onnxruntime

from .errors import EngineError
from .graph.float16 import MAX_HALF


def in_half(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """A copy with its matrices stored in float16; it computes in float32.

    Returns:
        None where a weight is too large for float16.
    """
    half = onnx.ModelProto()
    half.CopyFrom(model)
    casts = []
    for tensor in half.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) != 2:
            continue
        value = numpy_helper.to_array(tensor)
        if np.abs(value).max(initial=0) > MAX_HALF:
            return None
        name, stored = tensor.name, f"{tensor.name}/half"
        tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float16), stored))
        cast = helper.make_node("Cast", [stored], [name], f"{name}/Cast", to=TensorProto.FLOAT)
        casts.append(cast)
    nodes = [*casts, *half.graph.node]
    del half.graph.node[:]
    half.graph.node.extend(nodes)
    return half


def in_int8(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with INT8 weights, per output channel; activations get their ranges as it runs.

    Raises:
        EngineError: onnxruntime is missing, or its quantizer fails.
    """
    import_onnxruntime()
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root = logging.getLogger()  # it advises a pre-processing that this graph has had
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory(prefix="regcache-text-") as folder:
            target = Path(folder) / "int8.onnx"
            quantize_dynamic(model, target, per_channel=True, weight_type=QuantType.QInt8)
            return onnx.load(target)
    except Exception as error:  # it raises whatever onnx and its own code do
        raise EngineError(f"ONNX Runtime cannot quantize the text tower: {error}") from error
    finally:
        root.setLevel(level)
