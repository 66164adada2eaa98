"""Q and DQ of activations and weights, which quantized linears and attention products share."""

from __future__ import annotations

import numpy as np

from ..integer_codes import CONTAINER_BITS, code_range, container, weight_codes
from ..tensor_quant import TensorQuant
from .builder import Array, GraphBuilder


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
    x = clip_to_codes(builder, name, x, quant)
    parameters = input_parameters(builder, name, quant, container(quant))
    codes = builder.node(f"{name}/QuantizeLinear", [x, *parameters])
    return builder.node(f"{name}/DequantizeLinear", [codes, *parameters])


def clip_to_codes(builder: GraphBuilder, name: str, x: str, quant: TensorQuant) -> str:
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


def weight_constants(
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
    inputs = weight_constants(builder, name, weight, quant, row_scale)
    # onnx wants an axis only where there is more than one scale; 1 is C_out
    per_column = quant.per_channel or row_scale is not None
    attributes = {"axis": 1} if per_column else None
    return builder.node(f"{name}/weight/DequantizeLinear", inputs, attributes)
