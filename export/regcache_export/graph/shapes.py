"""Shapes of all inner tensors, written into the model so that a viewer shows them.

The inference runs on a copy without the large constants, so that its time and memory do not grow
with the weights.
"""

from __future__ import annotations

import math

import onnx
from onnx import TensorProto, helper

SMALL = 64
"""Constants up to so many elements stay: shapes are computed from them."""


def add_shapes(model: onnx.ModelProto) -> None:
    """Add `value_info` of every inner tensor whose shape can be found, in the order of the nodes.

    Operators that onnx does not know, and what lies behind them, stay without.
    """
    inferred = onnx.shape_inference.infer_shapes(_skeleton(model), data_prop=True)
    found = {value.name: value for value in inferred.graph.value_info}
    known = {value.name for value in (*model.graph.value_info, *model.graph.output)}
    for node in model.graph.node:
        for name in node.output:
            if name in found and name not in known:
                model.graph.value_info.append(found[name])


def _skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    graph, inputs, constants = model.graph, list(model.graph.input), []
    for tensor in graph.initializer:
        if math.prod(tensor.dims) <= SMALL:
            constants.append(tensor)
        else:
            inputs.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    nodes = [stand_in for node in graph.node for stand_in in _stand_ins(node)]
    small = helper.make_graph(nodes, graph.name, inputs, graph.output, constants)
    opsets = model.opset_import
    return helper.make_model(small, opset_imports=opsets, ir_version=model.ir_version)


def _stand_ins(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Standard operators with the output type and shape of one of ONNX Runtime's own."""
    if node.domain and node.op_type == "MultiHeadAttention":
        return [helper.make_node("Identity", node.input[:1], node.output)]
    if node.domain and node.op_type == "MatMulIntegerToFloat":
        factors = [f"{node.name}/{side}" for side in ("left", "right")]
        casts = [
            helper.make_node("Cast", [source], [factor], to=TensorProto.FLOAT)
            for source, factor in zip(node.input, factors, strict=False)
        ]
        return [*casts, helper.make_node("MatMul", factors, node.output)]
    return [node]
