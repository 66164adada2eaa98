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

import numpy as np
import numpy.typing as npt

from ..plan import LinearQuant, TensorQuant
from .builder import Array, GraphBuilder

FloatArray = npt.NDArray[np.float32]

CONTAINER_BITS = 8

OutputScale = Callable[[Array], Array]


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


def linear(
    builder: GraphBuilder,
    name: str,
    x: str,
    weight: Array,
    bias: Array,
    quant: LinearQuant | None = None,
    row_scale: FloatArray | None = None,
) -> str:
    """Add one linear layer.

    Args:
        builder: graph under construction.
        name: e.g. `blocks.3.mlp.fc2`; prefix of every node and initializer of the layer.
        x: value `[B, N, C_in]`.
        weight: float32 `[C_out, C_in]`, as in the plan.
        bias: float32 `[C_out]`; an all-zero bias adds no node.
        quant: its quantizers, or None for floating point.
        row_scale: powers of two `[C_out]` multiplied into the output exactly: into weight scale
            (or weight) and bias.

    Returns:
        Value `[B, N, C_out]`.
    """
    if quant is None:
        scaled = weight if row_scale is None else weight * row_scale[:, None]
        w = builder.constant(f"{name}.weight", scaled.astype(np.float32).T)
    else:
        x = quantize_activation(builder, name, x, quant.input)
        w = _quantized_weight(builder, name, weight, quant.weight, row_scale)
    y = builder.node(f"{name}/MatMul", [x, w])
    if not bias.any():
        return y
    offset = (bias if row_scale is None else bias * row_scale).astype(np.float32)
    # in floating point one dimension is the better shape: ONNX Runtime fuses it into the GELU
    shape = (-1,) if quant is None else (1, 1, -1)
    stored = builder.constant(f"{name}.bias", offset.reshape(shape))
    return builder.node(f"{name}/Add", [y, stored])


def quantize_activation(builder: GraphBuilder, name: str, x: str, quant: TensorQuant) -> str:
    """Q and DQ of an activation with one scale.

    Below 8 bits, QuantizeLinear saturates only at the container's range, so a Clip in front of it
    cuts at the values of the outermost codes. The bounds are `code * scale` rounded to float32;
    dividing them by the scale again is off by an ulp at most, and rounds to the same code.
    """
    scale = np.float32(quant.scale.reshape(()))
    zero_point = int(quant.zero_point.reshape(()))
    if quant.bits < CONTAINER_BITS:
        low, high = code_range(quant)
        bounds = [
            builder.constant(f"{name}.input_{end}", np.asarray((code - zero_point) * scale))
            for end, code in (("min", low), ("max", high))
        ]
        x = builder.node(f"{name}/Clip", [x, *bounds])
    parameters = [
        builder.constant(f"{name}.input_scale", np.asarray(scale)),
        builder.constant(f"{name}.input_zero_point", np.asarray(zero_point, container(quant))),
    ]
    codes = builder.node(f"{name}/QuantizeLinear", [x, *parameters])
    return builder.node(f"{name}/DequantizeLinear", [codes, *parameters])


def _quantized_weight(
    builder: GraphBuilder,
    name: str,
    weight: Array,
    quant: TensorQuant,
    row_scale: FloatArray | None,
) -> str:
    scale = quant.scale.astype(np.float32)
    zero_point = quant.zero_point
    per_column = quant.per_channel or row_scale is not None
    if per_column:
        scale = np.broadcast_to(scale, len(weight))
        zero_point = np.broadcast_to(zero_point, len(weight))
    if row_scale is not None:
        scale = scale * row_scale
    shape = (-1,) if per_column else ()
    inputs = [
        builder.constant(f"{name}.weight", weight_codes(weight, quant).T),
        builder.constant(f"{name}.weight_scale", scale.astype(np.float32).reshape(shape)),
        builder.constant(
            f"{name}.weight_zero_point", zero_point.astype(container(quant)).reshape(shape)
        ),
    ]
    # onnx wants an axis only where there is more than one scale; 1 is C_out
    attributes = {"axis": 1} if per_column else None
    return builder.node(f"{name}/weight/DequantizeLinear", inputs, attributes)
