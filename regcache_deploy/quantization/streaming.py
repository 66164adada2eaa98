"""Calibration over any number of images in constant memory: running ranges and histograms.

Pass 1 finds the range of every linear's input; pass 2, for methods that look inside the range,
counts values in bins of fixed width. What is kept does not grow with the number of images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from regcache_export.passes import make_folds

from ..encoders.canonical import Encoder
from ..encoders.regcache import RegCache
from ..errors import ConfigError, DataError
from .baselines.base import check_finite
from .encoder_folds import CALIBRATION_FOLDS, apply_folds
from .quantizers import Bits, Uniform, symmetric_weight
from .simulate import Calibration, LinearQuantization, Quantization

Method = Literal["minmax", "percentile", "mse"]
METHODS: tuple[Method, ...] = ("minmax", "percentile", "mse")

BINS = 4096
PERCENTILE = 0.9999
MSE_CANDIDATES = 64

Batches = Callable[[], Iterable[Tensor]]
"""Makes a fresh iterator over tokens `[b, N, D]` at the input of block 0, once per pass."""


@dataclass
class Range:
    """Running least and greatest value."""

    low: float = float("inf")
    high: float = float("-inf")

    def update(self, x: Tensor) -> None:
        low, high = torch.aminmax(x)
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))

    @property
    def max_abs(self) -> float:
        return max(abs(self.low), abs(self.high))


@dataclass
class Histogram:
    """Counts of |x| in `bins` bins of equal width over `[0, limit]`.

    Attributes:
        limit: largest |x|, from an earlier pass; larger values would count in the last bin.
        counts: int64 `[bins]`.
    """

    limit: float
    bins: int = BINS
    counts: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.counts = torch.zeros(self.bins, dtype=torch.int64)

    def update(self, x: Tensor) -> None:
        index = (x.abs().flatten() * (self.bins / self.limit)).to(torch.int64)
        self.counts += torch.bincount(index.clamp_(max=self.bins - 1), minlength=self.bins)

    def percentile(self, fraction: float) -> float:
        """Least bin edge below which at least `fraction` of the values lie."""
        below = self.counts.cumsum(0)
        wanted = fraction * float(below[-1])
        index = int(torch.searchsorted(below.double(), torch.tensor(wanted).double()))
        return (min(index, self.bins - 1) + 1) * self.limit / self.bins

    def least_error(self, bits: int, candidates: int = MSE_CANDIDATES) -> float:
        """Clipping limit of least squared error, every value taken at the middle of its bin."""
        width = self.limit / self.bins
        middle = (torch.arange(self.bins, dtype=torch.float64) + 0.5) * width
        weights = self.counts.double()
        best, lowest = self.limit, float("inf")
        for step in range(candidates, 0, -1):
            limit = self.limit * step / candidates
            scale = limit / (2 ** (bits - 1) - 1)
            codes = torch.round(middle / scale).clamp_max(2 ** (bits - 1) - 1)
            error = float(((codes * scale - middle).square() * weights).sum())
            if error < lowest:
                best, lowest = limit, error
        return best


class _Watch:
    """Float numerics that show the input of every linear to an observer."""

    def __init__(self, observe: Callable[[str, Tensor], None]) -> None:
        self.observe = observe

    def linear(self, name: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        check_finite(name, x)
        self.observe(name, x)
        return F.linear(x, weight, bias)

    def matmul(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        return a @ b


@torch.no_grad()
def calibrate_stream(
    encoder: Encoder,
    batches: Batches,
    bits: Bits | None = None,
    method: Method = "minmax",
    regcache: RegCache | None = None,
    folds: tuple[str, ...] = CALIBRATION_FOLDS,
) -> Calibration:
    """The `naive` quantizer with a choice of observer, over a stream of batches.

    Activations are symmetric per tensor, weights symmetric per output channel, both as `naive`;
    with `minmax` the result is that of `naive` on the same images.

    Args:
        encoder: in floating point.
        batches: called once for `minmax`, twice for the others.
        bits: widths.
        method: `minmax`; `percentile` clips at the 99.99th of |x|; `mse` at the limit of least
            squared error.
        regcache: active during calibration.
        folds: exact folds before calibration.

    Raises:
        ConfigError: an unknown method.
        DataError: no images, or non-finite activations; the message names the layer.
    """
    if method not in METHODS:
        raise ConfigError(f"unknown observer '{method}'; take one of: {', '.join(METHODS)}")
    bits = bits or Bits()
    encoder = apply_folds(encoder, make_folds(folds))
    ranges = {name: Range() for name in encoder.spec.linears()}
    seen = _pass(encoder, batches, regcache, lambda name, x: ranges[name].update(x))
    if not seen:
        raise DataError("calibration needs at least one image")
    limits = {name: found.max_abs for name, found in ranges.items()}
    if method != "minmax":
        heard = {name: Histogram(limit) for name, limit in limits.items() if limit > 0}

        def count(name: str, x: Tensor) -> None:
            if name in heard:
                heard[name].update(x)

        _pass(encoder, batches, regcache, count)
        for name, histogram in heard.items():
            if method == "percentile":
                limits[name] = min(histogram.percentile(PERCENTILE), limits[name])
            else:
                limits[name] = histogram.least_error(bits.activation)
    linears, warnings = {}, []
    for name, limit in limits.items():
        if limit == 0:
            warnings.append(f"the input of {name} is zero on every calibration image")
        linears[name] = LinearQuantization(
            Uniform.symmetric(torch.tensor(limit), bits.activation),
            symmetric_weight(encoder.weights[f"{name}.weight"], bits.weight),
        )
    return Calibration(encoder, Quantization(linears), regcache, tuple(warnings))


def _pass(
    encoder: Encoder,
    batches: Batches,
    regcache: RegCache | None,
    observe: Callable[[str, Tensor], None],
) -> int:
    seen = 0
    for tokens in batches():
        encoder.run_blocks(tokens, numerics=_Watch(observe), regcache=regcache)
        seen += len(tokens)
    return seen
