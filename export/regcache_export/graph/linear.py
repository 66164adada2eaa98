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
import numpy.typing as npt

from ..passes.base import FoldState
from ..plan import LinearQuant, TensorQuant
from ..targets import LinearForm
from ..treated import float_weight, integer_weight
from .builder import Array, GraphBuilder

FloatArray = npt.NDArray[np.float32]

CONTAINER_BITS = 8


def code_range(quant: TensorQuant) -> tuple[int, int]:
    """Smallest and largest integer code; below 8 bits, a part of the 8-bit container's range."""
    if quant.signed:
        return -(2 ** (quant.bits - 1)), 2 ** (quant.bits - 1) - 1
    return 0, 2**quant.bits - 1


def container(quant: TensorQuant) -> type[np.int8] | type[np.uint8]:
    """The integer type that holds the codes."""
    return np.int8 if quant.signed else np.uint8


def weight_codes(weight: Array, quant: TensorQuant) -> Array:
    """Integer codes `[C_out, C_in]` of a weight `[C_out, C_in]`.

    Computed in float32, ties to even: the very operations of the PyTorch simulation, so that the
    codes are equal bit for bit.
    """
    shape = (-1, 1) if quant.per_channel else ()
    scale = quant.scale.astype(np.float32).reshape(shape)
    zero_point = quant.zero_point.astype(np.float32).reshape(shape)
    low, high = code_range(quant)
    codes: Array = np.clip(np.rint(weight.astype(np.float32) / scale) + zero_point, low, high)
    return codes.astype(container(quant))


@dataclass(frozen=True)
class LinearParts:
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
        from .published import published_linear  # which is built from the parts of this file

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
    parts = LinearParts(name, treated, rows, offset, quant, row_scale)
    y = LINEAR_FORMS[builder.target.linear](builder, parts)
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


def qdq_linear(builder: GraphBuilder, parts: LinearParts) -> str:
    """QuantizeLinear, DequantizeLinear, MatMul, Add: standard operators."""
    name, quant = parts.name, parts.quant
    x = quantize_activation(builder, name, parts.x, quant.input)
    w = quantized_weight(builder, name, parts.weight, quant.weight, parts.row_scale)
    y = builder.node(f"{name}/MatMul", [x, w])
    if parts.bias is None:
        return y
    stored = builder.constant(f"{name}.bias", parts.bias.reshape(1, 1, -1))
    return builder.node(f"{name}/Add", [y, stored])


def integer_to_float_linear(builder: GraphBuilder, parts: LinearParts) -> str:
    """QuantizeLinear to uint8 and com.microsoft.MatMulIntegerToFloat, with the bias inside.

    Signed activation codes are stored with 128 added: the kernel is fast for u8s8 only, and adds
    the zero point's share by itself. The integers that are multiplied stay the same.
    """
    name, quant = parts.name, parts.quant
    scale, zero_point = input_parameters(builder, name, quant.input, np.uint8)
    x = _clip(builder, name, parts.x, quant.input)
    codes = builder.node(f"{name}/QuantizeLinear", [x, scale, zero_point])
    weight, weight_scale, weight_zero_point = _weight_constants(
        builder, name, parts.weight, quant.weight, parts.row_scale
    )
    inputs = [codes, weight, scale, weight_scale, zero_point]
    # without weight zero points the kernel has no correction to add to every element
    inputs.append(weight_zero_point if parts.quant.weight.zero_point.any() else "")
    inputs.append("" if parts.bias is None else builder.constant(f"{name}.bias", parts.bias))
    while not inputs[-1]:
        inputs.pop()
    return builder.node(f"{name}/MatMulIntegerToFloat", inputs, domain="com.microsoft")


LINEAR_FORMS: dict[LinearForm, Callable[[GraphBuilder, LinearParts], str]] = {
    "qdq": qdq_linear,
    "integer_to_float": integer_to_float_linear,
}


def input_parameters(
    builder: GraphBuilder, name: str, quant: TensorQuant, stored: type[np.int8] | type[np.uint8]
) -> tuple[str, str]:
    """Scale and zero point of an activation; signed codes may be stored as uint8, 128 higher."""
    zero_point = int(quant.zero_point.reshape(()))
    if quant.signed and stored is np.uint8:
        zero_point += 2 ** (CONTAINER_BITS - 1)
    scale = np.asarray(np.float32(quant.scale.reshape(())))
    return (
        builder.constant(f"{name}.input_scale", scale),
        builder.constant(f"{name}.input_zero_point", np.asarray(zero_point, stored)),
    )


def quantize_activation(builder: GraphBuilder, name: str, x: str, quant: TensorQuant) -> str:
    """Q and DQ of an activation with one scale."""
    x = _clip(builder, name, x, quant)
    parameters = input_parameters(builder, name, quant, container(quant))
    codes = builder.node(f"{name}/QuantizeLinear", [x, *parameters])
    return builder.node(f"{name}/DequantizeLinear", [codes, *parameters])


def _clip(builder: GraphBuilder, name: str, x: str, quant: TensorQuant) -> str:
    """Below 8 bits, cut at the values of the outermost codes.

    QuantizeLinear saturates only at the container's range. The bounds are `code * scale` rounded
    to float32; dividing them by the scale again is off by an ulp at most, and rounds to the same
    code.
    """
    if quant.bits == CONTAINER_BITS:
        return x
    scale, zero_point = np.float32(quant.scale.reshape(())), int(quant.zero_point.reshape(()))
    low, high = code_range(quant)
    bounds = [
        # numpy 1 makes float64 of an int times a float32 scalar
        builder.constant(f"{name}.input_{end}", np.asarray(np.float32(code - zero_point) * scale))
        for end, code in (("min", low), ("max", high))
    ]
    return builder.node(f"{name}/Clip", [x, *bounds])


def _weight_constants(
    builder: GraphBuilder,
    name: str,
    weight: Array,
    quant: TensorQuant,
    row_scale: Array | None,
) -> list[str]:
    """Codes `[C_in, C_out]`, scale and zero point, each `[C_out]` or a scalar."""
    scale = quant.scale.astype(np.float32)
    zero_point = quant.zero_point
    per_column = quant.per_channel or row_scale is not None
    if per_column:
        scale = np.broadcast_to(scale, len(weight))
        zero_point = np.broadcast_to(zero_point, len(weight))
    if row_scale is not None:
        scale = scale * row_scale
    shape = (-1,) if per_column else ()
    return [
        builder.constant(f"{name}.weight", weight_codes(weight, quant).T),
        builder.constant(f"{name}.weight_scale", scale.astype(np.float32).reshape(shape)),
        builder.constant(
            f"{name}.weight_zero_point", zero_point.astype(container(quant)).reshape(shape)
        ),
    ]


def quantized_weight(
    builder: GraphBuilder,
    name: str,
    weight: Array,
    quant: TensorQuant,
    row_scale: Array | None,
) -> str:
    """Codes of a weight `[C_out, C_in]` as a constant and their DQ: value `[C_in, C_out]`."""
    inputs = _weight_constants(builder, name, weight, quant, row_scale)
    # onnx wants an axis only where there is more than one scale; 1 is C_out
    per_column = quant.per_channel or row_scale is not None
    attributes = {"axis": 1} if per_column else None
    return builder.node(f"{name}/weight/DequantizeLinear", inputs, attributes)
