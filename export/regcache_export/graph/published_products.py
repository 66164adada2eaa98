"""Quantizers as published, from standard operators: what makes a graph equal to a paper.

    uniform, zero point a code      QuantizeLinear, DequantizeLinear                  one product
    uniform, any other zero point   Div, Round, Clip, Mul in float                    one product
    twin GELU                       Min and Max with 0, Q/DQ of each half             two products
    twin softmax (selecting)        Less, two Where, Q/DQ of each half                two products
    log-sqrt2                       Div, Log, Mul, Round, Clip, Gather of the levels  one product

The halves of a twin have disjoint supports, so their products add up to the published one. Only
operands from Q/DQ alone are integer products; what the rest costs, `benchmarks/strict_paper.py`
counts.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from ..passes.base import FoldState
from ..published_quant import HALVES, PublishedQuant
from .builder import Array, FloatArray, GraphBuilder
from .float_layers import float_constant
from .quantize import quantize_activation, quantized_weight


def published_linear(
    builder: GraphBuilder,
    name: str,
    x: str,
    weight: Array,
    bias: FloatArray | None,
    quants: tuple[PublishedQuant, PublishedQuant],
    row_scale: Array | None,
) -> str:
    """A linear layer with published quantizers.

    Args:
        name: e.g. `blocks.3.mlp.fc2`.
        x: value `[B, N, C_in]`.
        weight: `[C_out, C_in]`.
        bias: `[C_out]` with `row_scale` in it, or None.
        quants: of input and weight.
        row_scale: factors `[C_out]` on the output of the product, or None.

    Returns:
        Value `[B, N, C_out]`.
    """
    standard = quants[1].standard
    # Behind a float input, ONNX Runtime 1.31 turns DQ and MatMul into MatMulNBits, which quantizes
    # the input once more; a float weight it leaves alone.
    if standard is not None and _is_integer(quants[0]):
        w = quantized_weight(builder, name, weight, standard, row_scale)
    else:
        values = grid_values(weight, quants[1]) * (1 if row_scale is None else row_scale[:, None])
        w = float_constant(builder, f"{name}.weight", values.T)
    y = _sum_of_products(builder, name, _parts(builder, name, x, quants[0]), w)
    if bias is None:
        return y
    stored = builder.constant(f"{name}.bias", bias.reshape(1, 1, -1))
    return builder.node(f"{name}/Add", [y, stored])


def product(builder: GraphBuilder, state: FoldState, name: str, a: str, b: str) -> str:
    """`a @ b` of the attention product `blocks.I.attn.qk` or `.pv`, quantized where it is so."""
    path = "/".join(name.rsplit(".", 1))
    if name not in state.published:
        return builder.node(f"{path}/MatMul", [a, b])
    left, right = state.published[name]
    (other,) = _parts(builder, f"{path}/right", b, right)
    return _sum_of_products(builder, path, _parts(builder, f"{path}/left", a, left), other)


def grid_values(weight: Array, quant: PublishedQuant) -> FloatArray:
    """A weight `[C_out, C_in]` on its grid, by the very operations of the simulation."""
    shape = (-1, 1) if quant.scale.size > 1 else ()
    scale, zero = (v.astype(np.float32).reshape(shape) for v in (quant.scale, quant.zero_point))
    low = -(2 ** (quant.bits - 1)) if quant.signed else 0
    codes = np.clip(np.rint(weight.astype(np.float32) / scale) + zero, low, low + 2**quant.bits - 1)
    values: FloatArray = (codes - zero) * scale
    return values


def _sum_of_products(builder: GraphBuilder, name: str, parts: list[str], right: str) -> str:
    if len(parts) == 1:
        return builder.node(f"{name}/MatMul", [parts[0], right])
    products = [
        builder.node(f"{name}/{half}/MatMul", [part, right])
        for half, part in zip(HALVES, parts, strict=True)
    ]
    return builder.node(f"{name}/sum/Add", products)


def _is_integer(quant: PublishedQuant) -> bool:
    return quant.standard is not None or quant.kind.startswith("twin")


def _parts(builder: GraphBuilder, name: str, x: str, quant: PublishedQuant) -> list[str]:
    """Values whose sum is the quantized `x`."""
    standard = quant.standard
    if standard is not None:
        return [quantize_activation(builder, name, x, standard)]
    if quant.kind == "uniform":
        return [_float_grid(builder, name, x, quant)]
    if quant.kind == "log_sqrt2":
        return [_log_sqrt2(builder, name, x, quant)]
    zero = builder.constant("zero", np.asarray(0, np.float32))
    if quant.kind == "twin_gelu":
        halves = [
            builder.node(f"{name}/{half}/{operator}", [x, zero])
            for half, operator in zip(HALVES, ("Min", "Max"), strict=True)
        ]
    else:
        split = builder.constant(f"{name}.split", np.asarray(quant.split))
        is_lower = builder.node(f"{name}/Less", [x, split])
        halves = [
            builder.node(f"{name}/{half}/Where", [is_lower, *choice])
            for half, choice in zip(HALVES, ((x, zero), (zero, x)), strict=True)
        ]
    return [
        quantize_activation(builder, f"{name}/{half}", value, step)
        for half, value, step in zip(HALVES, halves, quant.halves, strict=True)
    ]


def _float_grid(builder: GraphBuilder, name: str, x: str, quant: PublishedQuant) -> str:
    """`clip(round(x / s), low - z, high - z) * s`: z is no code, perhaps no integer."""
    scale, zero = np.float32(quant.scale[0]), np.float32(quant.zero_point[0])
    low = -(2 ** (quant.bits - 1)) if quant.signed else 0
    bounds = [np.float32(code) - zero for code in (low, low + 2**quant.bits - 1)]
    step = builder.constant(f"{name}.step", np.asarray(scale))
    ends = [
        builder.constant(f"{name}.{end}_level", np.asarray(value))
        for end, value in zip(("lowest", "highest"), bounds, strict=True)
    ]
    levels = builder.node(f"{name}/Round", [builder.node(f"{name}/Div", [x, step])])
    clipped = builder.node(f"{name}/levels/Clip", [levels, *ends])
    return builder.node(f"{name}/Mul", [clipped, step])


def _log_sqrt2(builder: GraphBuilder, name: str, x: str, quant: PublishedQuant) -> str:
    """Codes by a logarithm, values from a table; 0 has code infinity, clipped to that of zero."""
    delta = builder.constant(f"{name}.delta", np.asarray(np.float32(quant.scale[0])))
    factor = builder.constant("minus_2_log2_e", np.asarray(np.float32(-2 / np.log(2))))
    levels = quant.levels()
    ends = [
        builder.constant(f"{name}.{end}_code", np.asarray(np.float32(value)))
        for end, value in (("lowest", 0), ("zero", len(levels) - 1))
    ]
    logarithm = builder.node(f"{name}/Log", [builder.node(f"{name}/Div", [x, delta])])
    codes = builder.node(f"{name}/Round", [builder.node(f"{name}/Mul", [logarithm, factor])])
    codes = builder.node(f"{name}/codes/Clip", [codes, *ends])
    codes = builder.node(f"{name}/Cast", [codes], {"to": TensorProto.INT32})
    table = float_constant(builder, f"{name}.levels", levels)
    return builder.node(f"{name}/Gather", [table, codes], {"axis": 0})
