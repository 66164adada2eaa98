"""A uniform quantizer with integer zero point: what QuantizeLinear holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TensorQuant:
    """A uniform quantizer: `code = clip(round(x / scale) + zero_point)`.

    Attributes:
        scale: float32 `[1]`, or `[C]` along axis 0 if `per_channel`.
        zero_point: int32, same shape.
        bits: width of the code; below 8 the codes are clipped inside an 8-bit container.
        signed: int8 codes, else uint8.
    """

    scale: Array
    zero_point: Array
    bits: int = 8
    signed: bool = True
    per_channel: bool = False


@dataclass(frozen=True)
class LinearQuant:
    """Quantizers of one linear layer as deployed.

    Attributes:
        input: of the input, behind its factors.
        weight: of the weight, with the factors taken out (`treated.integer_weight`).
        input_multiplier: float32 `[C_in]`, powers of two on the input before it is quantized.
        float_channels: int64 `[c]`, input channels whose share is computed in floating point.
    """

    input: TensorQuant
    weight: TensorQuant
    input_multiplier: Array | None = None
    float_channels: Array | None = None
