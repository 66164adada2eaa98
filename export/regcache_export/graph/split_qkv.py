"""Packed queries, keys and values as three integer products, for ONNX Runtime's CPU kernels.

Every output column of a linear is computed on its own, so the numbers stay the same bit for bit.
No Split copies the three apart, and the last block of a CLS-pooled encoder asks for one query row
only.
"""

from __future__ import annotations

import numpy as np
import onnx

from ..spec import EncoderSpec
from .attention import MICROSOFT
from .editing import GraphEditor, new_node

OPERATOR = "MatMulIntegerToFloat"

# inputs of the operator
_WEIGHT, _WEIGHT_SCALE, _ZERO_POINT, _BIAS = 1, 3, 5, 6
_PER_COLUMN = {
    _WEIGHT: "weight",
    _WEIGHT_SCALE: "weight_scale",
    _ZERO_POINT: "weight_zero_point",
    _BIAS: "bias",
}


def split_qkv(model: onnx.ModelProto, spec: EncoderSpec) -> onnx.ModelProto:
    """Split the quantized QKV products of a graph of `spec`; `model` is changed in place."""
    editor = GraphEditor(model.graph)
    for index in range(spec.depth):
        _split_block(editor, f"blocks.{index}.attn")
    editor.drop_unused_constants()
    return model


def _split_block(editor: GraphEditor, name: str) -> None:
    packed, split = f"{name}.qkv/{OPERATOR}", f"{name}/Split"
    nodes = {node.name: node for node in editor.nodes}
    if packed not in nodes:
        return
    product, outputs = nodes[packed], list(nodes[split].output)
    first = nodes.get(f"{name}/q/Slice")
    only_first = first is not None and first.input[0] == outputs[0]

    def rule(node: onnx.NodeProto) -> list[onnx.NodeProto]:
        if node.name == split or (only_first and node.name == f"{name}/q/Slice"):
            return []
        if node.name != packed:
            return [node]
        parts = _narrow(editor, product, [f"{name}.{role}" for role in "qkv"], outputs)
        if first is None or not only_first:
            return parts
        rows = new_node(f"{name}.q/codes/Slice", [product.input[0], *first.input[1:]])
        parts[0].input[0] = rows.output[0]
        parts[0].output[0] = first.output[0]
        return [rows, *parts]

    editor.rewrite(rule)


def _narrow(
    editor: GraphEditor, product: onnx.NodeProto, names: list[str], outputs: list[str]
) -> list[onnx.NodeProto]:
    """The product as equal groups of columns, one for each name."""
    parts = []
    for index, (name, output) in enumerate(zip(names, outputs, strict=True)):
        inputs = list(product.input)
        for position, suffix in _PER_COLUMN.items():
            if position < len(inputs) and inputs[position]:
                value = editor.value(inputs[position])
                if value.ndim:
                    value = np.split(value, len(names), axis=-1)[index]
                    inputs[position] = editor.constant(f"{name}.{suffix}", value)
        parts.append(new_node(f"{name}/{OPERATOR}", inputs, output, domain=MICROSOFT))
    return parts
