"""The float32 copy of a graph whose body is float16: its integer codes are compared in float32."""

from __future__ import annotations

import numpy as np

from .onnx_proto import NUMPY, ModelProto, from_array, to_array

FLOAT, FLOAT16 = NUMPY["float32"], NUMPY["float16"]


def in_float32(model: ModelProto) -> ModelProto:
    """The same graph and the same constants, computed in float32.

    Returns:
        A copy; or `model` itself, where nothing is float16.
    """
    if all(tensor.data_type != FLOAT16 for tensor in model.graph.initializer):
        return model
    wide = ModelProto()
    wide.CopyFrom(model)
    del wide.graph.value_info[:]
    for tensor in wide.graph.initializer:
        if tensor.data_type == FLOAT16:
            value = to_array(tensor).astype(np.float32)
            tensor.CopyFrom(from_array(value, tensor.name))
    for node in wide.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == FLOAT16:
                attribute.i = FLOAT
    return wide
