"""Published activation quantizers that no INT8 runtime has: twin uniform and log-sqrt2.

They serve the paper forms of `ptq4vit` and `repqvit` only. Each has `codes` (integers, as float)
and `decode`, so that a test can count the levels; calling the object does both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from regcache_export.spec import Activation

ACTIVATION_MINIMUM: dict[Activation, float] = {
    "gelu": -0.16997120747990369,
    "quick_gelu": -0.16361018963635357,
    "gelu_tanh": -0.17004075057125412,
}
"""Least value of each activation function, found by bisection of its derivative in float64."""


@dataclass(frozen=True)
class TwinSoftmax:
    """Twin uniform quantizer of attention probabilities (PTQ4ViT, section 3.1).

    A code of `bits` bits is one range bit and `bits - 1` magnitude bits. Below `split` the step is
    `split / 2**(bits-1)`, from `split` on it is `1 / 2**(bits-1)`; with a split of `2**-m` the two
    steps differ by a shift of m. This is the form of the paper, in which the value selects its
    range. (The sum of two clipped parts, which is found in public code, is another quantizer with
    a larger error.)

    Attributes:
        split: boundary of the two ranges, a power of two in (0, 1].
        bits: code width.
    """

    split: float
    bits: int

    def codes(self, x: Tensor) -> Tensor:
        """`range bit * 2**(bits-1) + magnitude`."""
        half = 2 ** (self.bits - 1)
        small = torch.clamp(torch.round(x * (half / self.split)), 0, half - 1)
        large = torch.clamp(torch.round(x * half), 0, half - 1)
        return torch.where(x < self.split, small, large + half)

    def decode(self, codes: Tensor) -> Tensor:
        half = 2 ** (self.bits - 1)
        return torch.where(codes < half, codes * (self.split / half), (codes - half) / half)

    def __call__(self, x: Tensor) -> Tensor:
        return self.decode(self.codes(x))


@dataclass(frozen=True)
class TwinGelu:
    """Twin uniform quantizer after a GELU-like activation (PTQ4ViT, section 3.1).

    Negative values have the fixed range down to the activation's least value in codes
    `-2**(bits-1) .. 0`, positive ones a searched step in codes `0 .. 2**(bits-1)-1`.

    Attributes:
        scale: step of the positive side, shape `[]`.
        minimum: least value of the activation, from `ACTIVATION_MINIMUM`.
        bits: code width.
    """

    scale: Tensor
    minimum: float
    bits: int

    @property
    def negative_scale(self) -> Tensor:
        """Step of the negative side; float32, as a graph would hold it."""
        return torch.full_like(self.scale, -self.minimum / 2 ** (self.bits - 1))

    def codes(self, x: Tensor) -> Tensor:
        half = 2 ** (self.bits - 1)
        negative = torch.clamp(torch.round(x / self.negative_scale), -half, 0)
        positive = torch.clamp(torch.round(x / self.scale), 0, half - 1)
        return torch.where(x < 0, negative, positive)

    def decode(self, codes: Tensor) -> Tensor:
        return torch.where(codes < 0, codes * self.negative_scale, codes * self.scale)

    def __call__(self, x: Tensor) -> Tensor:
        return self.decode(self.codes(x))


@dataclass(frozen=True)
class LogSqrt2:
    """Logarithmic quantizer with base sqrt(2) (RepQ-ViT, section 3.3).

    `code = round(-2 log2(x / delta))`, clipped below at 0; `2**bits` and more stands for zero.
    The value `delta * 2**(-code/2)` is a shift by `ceil(code/2)` of one of two constants. The
    ratio of neighbouring levels does not depend on `bits`, so its relative error has a floor.

    Attributes:
        delta: value of code 0, shape `[]`.
        bits: code width.
    """

    delta: Tensor
    bits: int

    def codes(self, x: Tensor) -> Tensor:
        """Codes `0 .. 2**bits`; the last one is the flag of zero."""
        return torch.clamp(torch.round(-2 * torch.log2(x / self.delta)), 0, 2**self.bits)

    def decode(self, codes: Tensor) -> Tensor:
        odd = 1 + (math.sqrt(2) - 1) * torch.remainder(codes, 2)
        value = self.delta * odd * torch.exp2(-torch.ceil(codes / 2))
        return torch.where(codes < 2**self.bits, value, torch.zeros_like(value))

    def __call__(self, x: Tensor) -> Tensor:
        return self.decode(self.codes(x))
