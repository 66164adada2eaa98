"""Fake quantizers: float in, float on the quantization grid out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from regcache_export.plan import TensorQuant

MIN_SCALE = 1e-12
"""Floor of a scale, so that a constant-zero tensor quantizes to itself instead of to NaN."""


@dataclass(frozen=True)
class Bits:
    """Bit widths, written W8A8 as in the papers."""

    weight: int = 8
    activation: int = 8

    def __str__(self) -> str:
        return f"W{self.weight}A{self.activation}"


class Quantizer(Protocol):
    """Rounds a tensor to its quantization grid, keeping its shape."""

    def __call__(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Uniform:
    """ONNX QuantizeLinear followed by DequantizeLinear.

    Attributes:
        scale: float32, shape `[]`, or broadcastable to the tensor for per-channel scales.
        zero_point: integer code of 0.0, same shape as `scale`.
        bits: width of the code.
        signed: codes `-2**(bits-1) .. 2**(bits-1)-1`, else `0 .. 2**bits-1`.
    """

    scale: Tensor
    zero_point: Tensor
    bits: int
    signed: bool

    @property
    def code_range(self) -> tuple[int, int]:
        if self.signed:
            return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        return 0, 2**self.bits - 1

    def codes(self, x: Tensor) -> Tensor:
        """Integer codes as float; ties to even, as ONNX rounds."""
        low, high = self.code_range
        return (x / self.scale).round_().add_(self.zero_point).clamp_(low, high)

    def integers(self, x: Tensor) -> Tensor:
        """Codes less the zero point: what an integer GEMM multiplies, as float."""
        return self.codes(x).sub_(self.zero_point)

    def __call__(self, x: Tensor) -> Tensor:
        return self.integers(x).mul_(self.scale)

    def to_plan(self) -> TensorQuant:
        """The same quantizer for the plan: flat per-channel scales along axis 0."""
        return TensorQuant(
            scale=self.scale.detach().cpu().to(torch.float32).flatten().numpy(),
            zero_point=self.zero_point.detach().cpu().flatten().to(torch.int32).numpy(),
            bits=self.bits,
            signed=self.signed,
            per_channel=self.scale.numel() > 1,
        )

    @classmethod
    def symmetric(cls, max_abs: Tensor, bits: int) -> Uniform:
        """Signed codes, zero point 0; `max_abs` maps to the largest positive code."""
        scale = (max_abs.to(torch.float32) / (2 ** (bits - 1) - 1)).clamp_min(MIN_SCALE)
        return cls(scale, torch.zeros_like(scale), bits, signed=True)

    @classmethod
    def asymmetric(cls, low: Tensor, high: Tensor, bits: int) -> Uniform:
        """Unsigned codes over `[low, high]`, widened to hold 0 so that zero stays exact."""
        low, high = low.to(torch.float32).clamp_max(0), high.to(torch.float32).clamp_min(0)
        scale = ((high - low) / (2**bits - 1)).clamp_min(MIN_SCALE)
        zero_point = torch.clamp(torch.round(-low / scale), 0, 2**bits - 1)
        return cls(scale, zero_point, bits, signed=False)


def symmetric_weight(weight: Tensor, bits: int) -> Uniform:
    """Per-output-channel symmetric quantizer of a weight `[C_out, C_in]` by its extremes."""
    return Uniform.symmetric(weight.abs().amax(dim=1, keepdim=True), bits)
