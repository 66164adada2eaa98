"""The numbers of RepQ-ViT's scale reparametrization (section 3.2), from per-channel ranges.

A per-channel asymmetric quantizer of the LayerNorm output becomes a per-tensor one; the
per-channel factors and offsets move into the LayerNorm and into the linear. The fold itself is
`regcache_export.passes.Reparametrization`, in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from regcache_export.passes.reparametrization import fold_linear

from ..work.devices import wide
from .quantizers import MIN_SCALE, Uniform


@dataclass(frozen=True)
class LayerNormFold:
    """`x' = (x + shift) / ratio` per channel, made up for in the linear that reads x.

    Attributes:
        ratio: `[C]` float64, positive.
        shift: `[C]` float64.
    """

    ratio: Tensor
    shift: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """The folded LayerNorm output from the original one, `[..., C]`, in x's type."""
        return ((x + self.shift) / self.ratio).to(x.dtype)

    @property
    def channels(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Ratio and shift as the pass takes them."""
        return self.ratio.cpu().numpy(), self.shift.cpu().numpy()

    def linear(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Weight `[C_out, C]` and bias `[C_out]` after the fold."""
        rows, offset = (t.detach().cpu().double().numpy() for t in (weight, bias))
        new_rows, new_offset = fold_linear(rows, offset, *self.channels)
        return torch.from_numpy(new_rows).to(weight), torch.from_numpy(new_offset).to(bias)


@dataclass(frozen=True)
class Reparametrization:
    """A fold and the per-tensor quantizer that it allows.

    Attributes:
        fold: for the LayerNorm, the linear and the register.
        quantizer: of the folded LayerNorm output.
        constant: `[C]` bool, channels whose calibrated range is empty. They have no scale; the
            fold moves their value into the bias of the linear.
    """

    fold: LayerNormFold
    quantizer: Uniform
    constant: Tensor


def reparametrize(low: Tensor, high: Tensor, bits: int, centred: bool) -> Reparametrization:
    """From per-channel ranges to one scale and one zero point.

    With integer zero points on both sides the codes are those of the per-channel asymmetric
    quantizer. The published target, the mean zero point, is no integer; `centred` takes
    `2**(bits-1)` instead, which in signed codes is a symmetric quantizer with zero point 0.

    Args:
        low: `[C]`, least value of every channel of the LayerNorm output.
        high: `[C]`, greatest value.
        bits: code width.
        centred: zero point `2**(bits-1)` as deployed, else the mean as published.
    """
    low, high = (x.to(wide(x)) for x in (low, high))
    # An empty range is one that single precision cannot tell from a point.
    constant = high - low <= 1e-6 * torch.maximum(low.abs(), high.abs())
    scales = (high - low) / (2**bits - 1)
    varying = scales[~constant]
    target = varying.mean() if len(varying) else scales.new_ones(())
    # Rounded before it is divided by: the runtime multiplies by exactly this number.
    target = target.to(torch.float32).clamp_min(MIN_SCALE).to(low)
    scales = torch.where(constant, target, scales)
    zero_points = torch.round(-low / scales)
    middle = scales.new_full((), 2.0 ** (bits - 1))
    if not centred and len(varying):
        middle = zero_points[~constant].mean()
    # A constant channel becomes the level next to the middle code, which is exact.
    level = torch.round(2.0 ** (bits - 1) - middle) * target
    shift = torch.where(constant, level - low, scales * (zero_points - middle))
    scale = target.to(torch.float32)
    quantizer = Uniform(
        scale=scale,
        zero_point=torch.zeros_like(scale) if centred else middle.to(torch.float32),
        bits=bits,
        signed=centred,
    )
    return Reparametrization(LayerNormFold(scales / target, shift), quantizer, constant)
