"""A float32 graph with a float16 body; input and output keep their types.

TensorRT 11 and TensorRT-RTX know only strongly typed networks: what is float32 in the file runs
in float32. Since opset 19 the scales of QuantizeLinear and DequantizeLinear may be float16.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from ..errors import ModelError
from .editing import GraphEditor, Rewrite, new_node
from .tokens import in_island

MAX_HALF = float(np.finfo(np.float16).max)


def to_float16(model: onnx.ModelProto) -> None:
    """Turn every float32 constant and value of `model` into float16, in place.

    All but the merging of tokens, which has its casts already (`tokens.ISLAND`).

    Raises:
        ModelError: a constant is too large for float16, or a positive scale becomes zero.
    """
    graph = model.graph
    editor = GraphEditor(graph)
    scales = {
        node.input[1]
        for node in graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    }
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and not tensor.name.startswith("merge."):
            _shrink(tensor, is_scale=tensor.name in scales)
    for node in graph.node:
        for attribute in node.attribute:
            # a Cast of uint8 pixels: 0..255 are exact in float16
            if in_island(node) or node.op_type != "Cast":
                continue
            if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
    _cast_inputs(editor, graph)
    _cast_outputs(editor, graph)


def _shrink(tensor: onnx.TensorProto, is_scale: bool) -> None:
    value = numpy_helper.to_array(tensor)
    largest = float(np.abs(value).max(initial=0))
    if largest > MAX_HALF:
        raise ModelError(
            f"{tensor.name} holds {largest:.3g}, and float16 ends at {MAX_HALF:.0f}; "
            "export with --target onnx"
        )
    half = value.astype(np.float16)
    if is_scale and (half == 0).any():
        raise ModelError(f"{tensor.name} holds a scale below float16's smallest number")
    tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))


def _cast_inputs(editor: GraphEditor, graph: onnx.GraphProto) -> None:
    for value in graph.input:
        if value.type.tensor_type.elem_type != TensorProto.FLOAT:
            continue
        cast = new_node(f"{value.name}/Cast", [value.name], to=TensorProto.FLOAT16)
        for node in graph.node:
            if node.op_type != "Shape":  # the batch size needs no cast
                inputs = [cast.output[0] if name == value.name else name for name in node.input]
                del node.input[:]
                node.input.extend(inputs)
        editor.rewrite(_before_first(cast))


def _cast_outputs(editor: GraphEditor, graph: onnx.GraphProto) -> None:
    outputs = {v.name for v in graph.output if v.type.tensor_type.elem_type == TensorProto.FLOAT}

    def rule(node: onnx.NodeProto) -> list[onnx.NodeProto]:
        if node.output[0] not in outputs:
            return [node]
        name = node.output[0]
        node.output[0] = f"{name}/half"
        return [node, new_node(f"{name}/Cast", [node.output[0]], name, to=TensorProto.FLOAT)]

    editor.rewrite(rule)


def _before_first(new: onnx.NodeProto) -> Rewrite:
    pending = [new]

    def rule(node: onnx.NodeProto) -> list[onnx.NodeProto]:
        front = pending[:]
        pending.clear()
        return [*front, node]

    return rule
