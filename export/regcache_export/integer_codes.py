"""Integer codes of a quantizer: their range, the type that holds them, and those of a weight."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .tensor_quant import TensorQuant

Array = npt.NDArray[Any]

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
