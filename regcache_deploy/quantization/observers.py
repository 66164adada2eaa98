"""Ranges by percentile, the best of a few by the squared error of the tensor itself.

Quantiles are exact (linear interpolation, as `torch.quantile`), without its limit of 16 M
elements: only the tails above 0.999 and below 0.001 are sorted.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..work.devices import wide
from .nonuniform import LogSqrt2
from .quantizers import MIN_SCALE, Quantizer, Uniform

PERCENTILES = (0.999, 0.9999, 0.99999)
"""Candidates of RepQ-ViT's public code; quantiles (1 - p, p) make a range."""

CHUNK = 2**22
"""Elements that are quantized at a time while a range is scored."""

MakeQuantizer = Callable[[Tensor, Tensor], Quantizer]
"""From low and high, each `[M, 1]`, to a quantizer of `[M, n]`."""


def upper_quantiles(x: Tensor, percentiles: tuple[float, ...] = PERCENTILES) -> Tensor:
    """Quantiles of the upper tail of every row.

    Args:
        x: `[M, n]`.
        percentiles: each at least 0.5.

    Returns:
        `[P, M]`, interpolated linearly between neighbouring values.
    """
    last = x.shape[1] - 1
    lowest = math.floor(min(percentiles) * last)
    top = torch.topk(x, last - lowest + 1, dim=1).values
    out = []
    for percentile in percentiles:
        position = percentile * last
        below = math.floor(position)
        lower, upper = top[:, last - below], top[:, max(last - below - 1, 0)]
        out.append(lower + (upper - lower) * (position - below))
    return torch.stack(out)


def percentile_range(x: Tensor, make: MakeQuantizer) -> tuple[Tensor, Tensor]:
    """The percentile range of every row whose quantizer has the least squared error.

    Args:
        x: `[M, n]`, M independent tensors.
        make: the quantizer that a range stands for.

    Returns:
        low and high, each `[M, 1]`; the smaller percentile where errors are equal.
    """
    highs = upper_quantiles(x).unsqueeze(-1)
    lows = -upper_quantiles(-x).unsqueeze(-1)
    low, high, best = lows[0], highs[0], squared_error(x, make(lows[0], highs[0]))
    for next_low, next_high in zip(lows[1:], highs[1:], strict=True):
        error = squared_error(x, make(next_low, next_high))
        better = error < best
        low, high = torch.where(better, next_low, low), torch.where(better, next_high, high)
        best = torch.where(better, error, best)
    return low, high


def squared_error(x: Tensor, quantizer: Quantizer) -> Tensor:
    """Sum of `(Q(x) - x)**2` of every row of `[M, n]`, `[M, 1]` in `wide`."""
    dtype = wide(x)
    total = x.new_zeros(len(x), 1, dtype=dtype)
    for part in x.split(max(CHUNK // len(x), 1), dim=1):
        total += (quantizer(part) - part).square().sum(1, keepdim=True, dtype=dtype)
    return total


def affine(low: Tensor, high: Tensor, bits: int) -> Uniform:
    """Unsigned codes over exactly `[low, high]`.

    Unlike `Uniform.asymmetric`, the range need not hold 0 and the zero point may lie outside the
    codes: right for a per-channel range that a fold absorbs, but no ONNX quantizer.
    """
    scale = ((high - low) / (2**bits - 1)).clamp_min(MIN_SCALE)
    return Uniform(scale, torch.round(-low / scale), bits, signed=False)


def percentile_log_sqrt2(x: Tensor, bits: int) -> LogSqrt2:
    """Log-sqrt2 quantizer of non-negative `x`, any shape; delta is an upper percentile."""
    row = x.reshape(1, -1)
    candidates = [
        LogSqrt2(delta.squeeze().clamp_min(MIN_SCALE), bits) for delta in upper_quantiles(row)
    ]
    return min(candidates, key=lambda quantizer: float(squared_error(row, quantizer)))
