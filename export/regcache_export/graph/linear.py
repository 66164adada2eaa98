"""Linear layers: in floating point, and in the Q/DQ form that runtimes turn into integer GEMMs.

    x -> [Clip] -> QuantizeLinear -> DequantizeLinear -> MatMul -> Add
                          codes [C_in, C_out] -> DequantizeLinear --^

Two details decide whether ONNX Runtime really computes in integers, and it says nothing when it
does not. A QuantizeLinear must feed its own DequantizeLinear directly. And the bias must not be
one-dimensional: where the shapes are known (a user fixes the batch size), a bias `[C]` is first
fused with the MatMul to a float Gemm, which then either stays in floating point or, in onnxruntime
1.31, does not load at all; a bias `[1, 1, C]` is left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..passes.base import FoldState
from ..plan import LinearQuant
from ..targets import LinearForm
from ..treated import float_weight, integer_weight
from .builder import Array, FloatArray, GraphBuilder
from .published_products import published_linear
from .quantize import (
    clip_to_codes,
    input_parameters,
    quantize_activation,
    quantized_weight,
    weight_constants,
)


@dataclass(frozen=True)
class LinearInputs:
    """One linear layer, on its way into a form.

    Attributes:
        name: e.g. `blocks.3.mlp.fc2`; prefix of every node and initializer of the layer.
        x: value `[B, N, C_in]`.
        weight: `[C_out, C_in]` of the integer product.
        bias: float32 `[C_out]`, or None; with `row_scale` in it.
        quant: its quantizers.
        row_scale: factors `[C_out]` on the output of the product, or None.
    """

    name: str
    x: str
    weight: Array
    bias: FloatArray | None
    quant: LinearQuant
    row_scale: Array | None


def linear(builder: GraphBuilder, state: FoldState, name: str, x: str) -> str:
    """Add the linear layer `name`, quantized where the plan quantizes it.

    Args:
        builder: graph under construction; its target decides the form.
        state: weights, bias, quantizers, and what folds did to the layer's rows.
        name: e.g. `blocks.3.mlp.fc2`.
        x: value `[B, N, C_in]`.

    Returns:
        Value `[B, N, C_out]`.
    """
    weight, bias = state.weights[f"{name}.weight"], state.weights[f"{name}.bias"]
    row_scale, quant = state.row_scale.get(name), state.linears.get(name)
    if row_scale is not None:
        bias = bias * row_scale
    offset = bias.astype(np.float32) if bias.any() else None
    if name in state.published:
        return published_linear(builder, name, x, weight, offset, state.published[name], row_scale)
    if quant is None:
        return _float_linear(builder, name, x, weight, offset, row_scale)
    treated = x
    if quant.input_multiplier is not None:
        factors = builder.constant(f"{name}.input_multiplier", quant.input_multiplier)
        treated = builder.node(f"{name}/multiplier/Mul", [x, factors])
    if name in state.input_shift:
        shift = builder.constant(
            f"{name}.input_shift", np.asarray(state.input_shift[name], np.float32)
        )
        treated = builder.node(f"{name}/shift/Add", [treated, shift])
    rows = integer_weight(weight, quant)
    layer = LinearInputs(name, treated, rows, offset, quant, row_scale)
    y = LINEAR_FORMS[builder.target.linear](builder, layer)
    return y if quant.float_channels is None else _with_float_channels(builder, name, x, y, state)


def _with_float_channels(builder: GraphBuilder, name: str, x: str, y: str, state: FoldState) -> str:
    """`y` and the float product of a few channels of `x`.

    Gather, MatMul and Add of c channels cost an Add more than they compute; and no runtime takes
    a MatMul of c columns for a part of the integer product.
    """
    quant = state.linears[name]
    assert quant.float_channels is not None
    channels = builder.constant(f"{name}.float_channels", quant.float_channels)
    few = builder.node(f"{name}/float_channels/Gather", [x, channels], {"axis": 2})
    columns = float_weight(state.weights[f"{name}.weight"], quant).astype(np.float32)
    product = builder.node(
        f"{name}/float_channels/MatMul", [few, builder.constant(f"{name}.float_weight", columns.T)]
    )
    return builder.node(f"{name}/float_channels/Add", [y, product])


def _float_linear(
    builder: GraphBuilder,
    name: str,
    x: str,
    weight: Array,
    bias: FloatArray | None,
    row_scale: Array | None,
) -> str:
    scaled = weight if row_scale is None else weight * row_scale[:, None]
    w = builder.constant(f"{name}.weight", scaled.astype(np.float32).T)
    y = builder.node(f"{name}/MatMul", [x, w])
    if bias is None:
        return y
    # in floating point one dimension is the better shape: ONNX Runtime fuses it into the GELU
    return builder.node(f"{name}/Add", [y, builder.constant(f"{name}.bias", bias)])


def qdq_linear(builder: GraphBuilder, layer: LinearInputs) -> str:
    """QuantizeLinear, DequantizeLinear, MatMul, Add: standard operators."""
    name, quant = layer.name, layer.quant
    x = quantize_activation(builder, name, layer.x, quant.input)
    w = quantized_weight(builder, name, layer.weight, quant.weight, layer.row_scale)
    y = builder.node(f"{name}/MatMul", [x, w])
    if layer.bias is None:
        return y
    stored = builder.constant(f"{name}.bias", layer.bias.reshape(1, 1, -1))
    return builder.node(f"{name}/Add", [y, stored])


def integer_to_float_linear(builder: GraphBuilder, layer: LinearInputs) -> str:
    """QuantizeLinear to uint8 and com.microsoft.MatMulIntegerToFloat, with the bias inside.

    Signed activation codes are stored with 128 added: the kernel is fast for u8s8 only, and adds
    the zero point's share by itself. The integers that are multiplied stay the same.
    """
    name, quant = layer.name, layer.quant
    scale, zero_point = input_parameters(builder, name, quant.input, np.uint8)
    x = clip_to_codes(builder, name, layer.x, quant.input)
    codes = builder.node(f"{name}/QuantizeLinear", [x, scale, zero_point])
    weight, weight_scale, weight_zero_point = weight_constants(
        builder, name, layer.weight, quant.weight, layer.row_scale
    )
    inputs = [codes, weight, scale, weight_scale, zero_point]
    # without weight zero points the kernel has no correction to add to every element
    inputs.append(weight_zero_point if layer.quant.weight.zero_point.any() else "")
    inputs.append("" if layer.bias is None else builder.constant(f"{name}.bias", layer.bias))
    while not inputs[-1]:
        inputs.pop()
    return builder.node(f"{name}/MatMulIntegerToFloat", inputs, domain="com.microsoft")


LINEAR_FORMS: dict[LinearForm, Callable[[GraphBuilder, LinearInputs], str]] = {
    "qdq": qdq_linear,
    "integer_to_float": integer_to_float_linear,
}
