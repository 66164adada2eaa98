"""The error of one quantized linear's output, weighted by what is read of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from regcache_export.spec import EncoderSpec

from .gradients import RowSample
from .observers import PERCENTILES, upper_quantiles
from .quantizers import Uniform
from .simulate import LinearQuantization, Quantization, SimulatedNumerics

ROWS = 2048
"""Most token rows that an error is taken over."""

CLASS_SHARE = 0.5
"""Of a class token's error. It is one row in some hundreds, and the one that is read."""


@dataclass(frozen=True)
class Reading:
    """Which tokens the pooling reads.

    Attributes:
        depth: number of blocks.
        class_token: the class token alone is pooled.
    """

    depth: int = 0
    class_token: bool = False

    @classmethod
    def of(cls, spec: EncoderSpec) -> Reading:
        return cls(spec.depth, spec.pool == "cls")

    def mean(self, name: str, errors: Tensor) -> float:
        """Mean of errors `[B, n]`, the class token first, at the output of the linear `name`."""
        if not self.class_token:
            return float(errors.mean())
        read = float(errors[:, 0].mean())
        last = int(name.split(".")[1]) == self.depth - 1
        if errors.shape[1] == 1 or (last and not name.endswith("attn.qkv")):
            return read  # behind the last attention nothing else goes on
        return CLASS_SHARE * read + (1 - CLASS_SHARE) * float(errors[:, 1:].mean())


class OutputError:
    """Squared error of a linear's output against floating point, on sampled rows.

    Each row's error is relative to its own squared length plus the median of all, so that neither
    a sink nor a silent token outvotes the others.
    """

    def __init__(
        self, name: str, x: Tensor, weight: Tensor, bias: Tensor, reading: Reading
    ) -> None:
        """`x [B, N, C_in]`, `weight [C_out, C_in]`, `bias [C_out]`."""
        self.name, self.weight, self.bias, self.reading = name, weight, bias, reading
        shape = (x.shape[0], x.shape[1])
        self.rows = RowSample.spread(shape, int(reading.class_token), ROWS).take(x)
        self.exact = F.linear(self.rows, weight, bias)
        lengths = self.exact.square().sum(-1)
        self.lengths = (lengths + lengths.median()).clamp_min(torch.finfo(lengths.dtype).tiny)

    def __call__(self, layer: LinearQuantization) -> float:
        numerics = SimulatedNumerics(Quantization({self.name: layer}))
        found = numerics.linear(self.name, self.rows, self.weight, self.bias)
        errors = (found - self.exact).square_().sum(-1) / self.lengths
        return self.reading.mean(self.name, errors)


def range_by_output(
    x: Tensor, make: Callable[[Tensor, Tensor], Uniform], score: Callable[[Uniform], float]
) -> Uniform:
    """The range with the least score: each of RepQ-ViT's percentiles, or all of it.

    Args:
        x: any shape.
        make: from low and high, scalars, to a quantizer.
        score: its output error.
    """
    row = x.reshape(1, -1)
    highs, lows = upper_quantiles(row)[:, 0], -upper_quantiles(-row)[:, 0]
    candidates = [make(lows[i], highs[i]) for i in range(len(PERCENTILES))]
    candidates.append(make(*torch.aminmax(x)))
    return min(candidates, key=score)
