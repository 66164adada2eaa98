"""The product of INT8 codes: in INT8 instructions where the CPU has exact ones, else in float32.

Both give the same integers as long as every partial sum stays below 2**24, where float32 is exact.
Beyond that the INT8 product is the one that a runtime computes, and float32 rounds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .quantizers import Uniform

ROWS = 1024
"""Tokens coded and multiplied at a time: what lies between stays in the CPU's cache."""

SHIFT = 128
"""Moves unsigned codes 0..255 into int8."""


@lru_cache(maxsize=1)
def has_exact_int8() -> bool:
    """Whether torch multiplies int8 on this CPU fast and without saturation in between.

    Without VNNI the INT8 product is emulated: slow, or inexact, because 16-bit sums of two
    products saturate. Tried with the largest codes, not just believed.
    """
    has_vnni = getattr(torch.cpu, "_is_vnni_supported", lambda: False)  # no public name yet
    if not (torch.backends.mkldnn.is_available() and has_vnni() and hasattr(torch, "_int_mm")):
        return False
    left = torch.full((32, 64), -128, dtype=torch.int8)
    left[::2] = 127
    right = torch.full((64, 32), 127, dtype=torch.int8)
    right[:, ::3] = -128
    try:
        found = torch._int_mm(left, right)
    except RuntimeError:
        return False
    return torch.equal(found.double(), left.double() @ right.double())


def has_integer_codes(quantizer: Uniform) -> bool:
    """RepQ-ViT as published has zero points between two codes."""
    zero_point = quantizer.zero_point
    return quantizer.bits <= 8 and torch.equal(zero_point, zero_point.round())


@dataclass(frozen=True)
class CodedWeight:
    """A weight's integers, ready to be multiplied.

    Attributes:
        integers: `[C_out, C_in]` codes less the zero point; int8 where the INT8 product takes
            them, else float32.
        sums: `[C_out]` int32, over the inputs; empty for float32.
        scale: `[C_out]`, or `[1]` for one of the whole tensor.
    """

    integers: Tensor
    sums: Tensor = field(repr=False)
    scale: Tensor = field(repr=False)

    @classmethod
    def of(cls, weight: Tensor, quantizer: Uniform) -> CodedWeight:
        """Integers of a weight `[C_out, C_in]`."""
        integers, scale = quantizer.integers(weight), quantizer.scale.flatten()
        low, high = torch.aminmax(integers)
        fits = has_integer_codes(quantizer) and bool(low >= -SHIFT) and bool(high < SHIFT)
        if not (fits and weight.device.type == "cpu" and has_exact_int8()):
            return cls(integers, integers.new_empty(0, dtype=torch.int32), scale)
        codes = integers.to(torch.int8)
        return cls(codes, codes.sum(dim=1, dtype=torch.int32), scale)

    @property
    def is_int8(self) -> bool:
        return self.integers.dtype == torch.int8


def coded_linear(x: Tensor, quantizer: Uniform, weight: CodedWeight, bias: Tensor) -> Tensor:
    """A linear layer over the integer codes of its input, scaled afterwards as in an INT8 GEMM.

    Args:
        x: `[..., C_in]`.
        quantizer: of `x`, with one scale.
        weight: coded.
        bias: `[C_out]`.

    Returns:
        `[..., C_out]`; NaN wherever an input is.
    """
    scale = quantizer.scale * weight.scale
    if not (weight.is_int8 and has_integer_codes(quantizer)):
        return F.linear(quantizer.integers(x), weight.integers.to(x.dtype)) * scale + bias
    shift = 0 if quantizer.signed else SHIFT
    offset = (shift - quantizer.zero_point).to(torch.int32) * weight.sums
    columns = weight.integers.t()
    flat = x.reshape(-1, x.shape[-1])
    out = x.new_empty((len(flat), len(weight.integers)))
    for rows, piece in zip(out.split(ROWS), flat.split(ROWS), strict=True):
        codes = quantizer.codes(piece)
        product = torch._int_mm(codes.sub_(shift).to(torch.int8), columns).add_(offset)
        torch.mul(product, scale, out=rows).add_(bias)
        if codes.sum().isnan():  # int8 has no NaN
            rows[codes.isnan().any(dim=1)] = torch.nan
    return out.view(*x.shape[:-1], -1)
