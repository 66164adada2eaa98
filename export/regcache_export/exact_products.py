"""Integer products that are exact on every CPU, for a graph that runs without optimizations.

On x86 without VNNI, sums of two u8s8 products saturate at 16 bits. ONNX Runtime mends that while
it optimizes (`session.x64quantprecision`), and not in a graph as written.
"""

from __future__ import annotations

import numpy as np

from .graph.editing import GraphEditor
from .onnx_proto import ModelProto

OPERATOR = "MatMulIntegerToFloat"
_WEIGHT, _ZERO_POINT = 1, 5
_SHIFT = 128


def exact_products(model: ModelProto) -> int:
    """Store signed weight codes 128 higher, as uint8, and their zero points with them.

    The integers that are multiplied, codes minus zero points, stay the same.

    Args:
        model: changed in place.

    Returns:
        How many products were changed.
    """
    editor, changed = GraphEditor(model.graph), 0
    for node in model.graph.node:
        if node.op_type != OPERATOR:
            continue
        weight = node.input[_WEIGHT]
        if weight not in editor.constants or editor.value(weight).dtype != np.int8:
            continue
        while len(node.input) <= _ZERO_POINT:
            node.input.append("")
        known = node.input[_ZERO_POINT]
        zero_point = editor.value(known) if known else np.zeros((), np.int8)
        for position, codes in ((_WEIGHT, editor.value(weight)), (_ZERO_POINT, zero_point)):
            unsigned = (codes.astype(np.int16) + _SHIFT).astype(np.uint8)
            name = f"{weight}.unsigned" if position == _WEIGHT else f"{weight}.unsigned_zero_point"
            node.input[position] = editor.constant(name, unsigned)
        changed += 1
    editor.drop_unused_constants()
    return changed
