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
    """Quantizers of one linear layer as deployed."""

    input: TensorQuant
    weight: TensorQuant
