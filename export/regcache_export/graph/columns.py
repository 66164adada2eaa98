"""Wide integer products as several narrower ones, for ONNX Runtime's kernels on a CPU.

Every output column of a linear is computed on its own, so the numbers stay the same bit for bit:

- queries, keys and values as three products: no Split copies them, and the last block of a
  CLS-pooled encoder asks for one query row only;
- fc1, the activation and fc2's QuantizeLinear over about `BLOCK` columns at a time: the float
  hidden layer of one group stays in the cache, and only its codes are put together.
"""

from __future__ import annotations

import numpy as np
import onnx

from ..spec import EncoderSpec
from .attention import MICROSOFT
from .editing import GraphEditor, new_node

OPERATOR = "MatMulIntegerToFloat"
BLOCK = 768
"""Columns of the hidden layer in one group."""

# inputs of the operator
_WEIGHT, _WEIGHT_SCALE, _ZERO_POINT, _BIAS = 1, 3, 5, 6
_PER_COLUMN = {
    _WEIGHT: "weight",
    _WEIGHT_SCALE: "weight_scale",
    _ZERO_POINT: "weight_zero_point",
    _BIAS: "bias",
}


def in_columns(model: onnx.ModelProto, spec: EncoderSpec) -> onnx.ModelProto:
    """Rewrite the quantized products of a graph of `spec`; `model` is changed in place."""
    editor = GraphEditor(model.graph)
    for index in range(spec.depth):
        _split_qkv(editor, f"blocks.{index}.attn")
        _split_hidden(editor, f"blocks.{index}.mlp", hidden_groups(spec.mlp_width))
    editor.drop_unused_constants()
    return model


def hidden_groups(width: int) -> int:
    """Into how many equal groups the hidden layer is cut: the most of at least `BLOCK` columns."""
    return next((n for n in range(max(1, width // BLOCK), 1, -1) if width % n == 0), 1)


def _split_qkv(editor: GraphEditor, name: str) -> None:
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


def _split_hidden(editor: GraphEditor, name: str, groups: int) -> None:
    fc1, codes = f"{name}.fc1/{OPERATOR}", f"{name}.fc2/QuantizeLinear"
    names = [node.name for node in editor.nodes]
    if groups == 1 or fc1 not in names or codes not in names:
        return
    start, end = names.index(fc1), names.index(codes)
    product, chain = editor.nodes[start], editor.nodes[start + 1 : end + 1]
    parts = _narrow(
        editor,
        product,
        [f"{name}.fc1.{group}" for group in range(groups)],
        [f"{product.output[0]}.{group}" for group in range(groups)],
    )
    new, inner = [], {value for node in (product, *chain) for value in node.output}
    for group, part in enumerate(parts):
        new.append(part)
        new += [_copy(node, group, inner) for node in chain]
    # what looks for the codes of fc2 finds them under the value's usual name
    joined = [node.output[0] for node in new if node.op_type == "QuantizeLinear"]
    new.append(new_node(f"{name}.fc2/codes/Concat", joined, chain[-1].output[0], axis=2))
    replaced = set(names[start : end + 1])
    editor.rewrite(
        lambda node: new if node.name == fc1 else [] if node.name in replaced else [node]
    )


def _copy(node: onnx.NodeProto, group: int, inner: set[str]) -> onnx.NodeProto:
    """An elementwise node between the products, for one group."""
    made = onnx.NodeProto()
    made.CopyFrom(node)
    owner, operator = node.name.rsplit("/", 1)
    made.name = f"{owner}.{group}/{operator}"
    made.output[:] = [f"{value}.{group}" for value in node.output]
    made.input[:] = [f"{value}.{group}" if value in inner else value for value in node.input]
    return made


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
