"""Calibration over any number of images in constant memory: running ranges and histograms.

Pass 1 finds the range of every linear's input; pass 2, for observers that look inside the range,
counts values in bins of fixed width. What is kept does not grow with the number of images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from regcache_export.passes import make_folds

from ..encoders.canonical import Encoder
from ..encoders.regcache import RegCache
from ..encoders.watching import Watched
from ..errors import ConfigError, DataError
from ..work.devices import halving
from .baselines.base import check_finite, check_scale
from .encoder_folds import CALIBRATION_FOLDS, apply_folds
from .histogram import Histogram, Observer, Range, check_observer
from .quantizers import Bits, Uniform, symmetric_weight
from .simulate import Calibration, LinearQuantization, Quantization
from .treated_input import UNTREATED, TreatedInput

T = TypeVar("T")

Batches = Callable[[], Iterable[Tensor]]
"""Makes a fresh iterator over tokens `[b, N, D]` at the input of block 0, once per pass."""


@dataclass(frozen=True)
class StreamedLimits:
    """What a stream said about the input of every linear.

    Attributes:
        limits: layer -> where |x| is clipped; 0 where every value was 0.
        largest: layer -> largest |x|.
        images: how many there were.
        state_bytes: what the observers held, however many images there were.
    """

    limits: dict[str, float]
    largest: dict[str, float]
    images: int
    state_bytes: int

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line for every input that has no range."""
        return tuple(
            f"the input of {name} is zero on every calibration image"
            for name, limit in self.limits.items()
            if limit == 0
        )


@torch.no_grad()
def stream_limits(
    encoder: Encoder,
    batches: Batches,
    bits: Mapping[str, int],
    observer: Observer = "minmax",
    regcache: RegCache | None = None,
    treated: Mapping[str, TreatedInput] | None = None,
) -> StreamedLimits:
    """Observe the inputs of some linears in the float model.

    Args:
        encoder: in floating point.
        batches: called once for `minmax`, twice for the others.
        bits: layer -> width of its codes; the layers to observe.
        observer: `minmax`; `percentile` clips at the 99.99th of |x|; `mse` at the limit of least
            squared error.
        regcache: active in the passes, with every token absent that its ranges are set without.
        treated: layer -> how its input is treated before it is quantized.

    Raises:
        ConfigError: an unknown observer.
        DataError: no images, another number of them in the second pass, or non-finite
            activations; the message names the layer.
    """
    check_observer(observer)
    present = regcache.for_ranges() if regcache else None
    ranges = {name: Range() for name in bits}

    def seen(name: str, x: Tensor) -> Tensor:
        how = (treated or {}).get(name, UNTREATED)
        return how.ranged(how.input(x))

    def extremes(name: str, x: Tensor) -> tuple[Tensor, Tensor] | None:
        return torch.aminmax(seen(name, x)) if name in ranges else None

    def widen(name: str, found: tuple[Tensor, Tensor]) -> None:
        ranges[name].widen(*found)

    images = _pass(encoder, batches, present, extremes, widen)
    if not images:
        raise DataError("calibration needs at least one image")
    largest = {name: found.max_abs for name, found in ranges.items()}
    if observer == "minmax":
        return StreamedLimits(largest, largest, images, 16 * len(ranges))
    histograms = {name: Histogram(limit) for name, limit in largest.items() if limit > 0}

    def count(name: str, x: Tensor) -> Tensor | None:
        return histograms[name].count(seen(name, x)) if name in histograms else None

    def add(name: str, counts: Tensor) -> None:
        histograms[name].counts += counts

    again = _pass(encoder, batches, present, count, add)
    if again != images:
        raise DataError(f"the second pass found {again} images and the first one {images}")
    limits = largest | {n: h.clipping(observer, bits[n]) for n, h in histograms.items()}
    held = sum(h.counts.numel() * h.counts.element_size() for h in histograms.values())
    return StreamedLimits(limits, largest, images, held + 16 * len(ranges))


@torch.no_grad()
def calibrate_stream(
    encoder: Encoder,
    batches: Batches,
    bits: Bits | None = None,
    observer: Observer = "minmax",
    regcache: RegCache | None = None,
    folds: tuple[str, ...] = CALIBRATION_FOLDS,
) -> Calibration:
    """The `naive` baseline over a stream of batches.

    Args, Raises: as `stream_limits`; `folds` are the exact folds before calibration.
    """
    bits = bits or Bits()
    encoder = apply_folds(encoder, make_folds(folds))
    widths = dict.fromkeys(encoder.spec.linears(), bits.activation)
    found = stream_limits(encoder, batches, widths, observer, regcache)
    linears = {}
    for name, limit in found.limits.items():
        weight = symmetric_weight(encoder.weights[f"{name}.weight"], bits.weight)
        linears[name] = LinearQuantization(
            _symmetric(name, limit, bits.activation, weight.scale.device), weight
        )
    return Calibration(encoder, Quantization(linears), regcache, found.warnings)


@torch.no_grad()
def recalibrate_stream(
    calibration: Calibration, batches: Batches, observer: Observer = "minmax"
) -> tuple[Calibration, StreamedLimits]:
    """The same calibration with the ranges of its activations measured anew.

    Weights, their quantizers, treated inputs, RegCache and the linears in float stay what they are.

    Raises:
        ConfigError: an activation with a zero point: its range belongs to another method.
        DataError: as `stream_limits`.
    """
    widths: dict[str, int] = {}
    for name, layer in calibration.quantization.linears.items():
        quantizer = layer.input
        if not isinstance(quantizer, Uniform) or not quantizer.signed or quantizer.zero_point.any():
            raise ConfigError(
                f"the input of {name} has a zero point, which the stream does not set"
            )
        widths[name] = quantizer.bits
    treated = {name: layer.treated for name, layer in calibration.quantization.linears.items()}
    found = stream_limits(
        calibration.encoder, batches, widths, observer, calibration.regcache, treated
    )
    device = calibration.encoder.device
    linears = {
        name: replace(layer, input=_symmetric(name, found.limits[name], widths[name], device))
        for name, layer in calibration.quantization.linears.items()
    }
    quantization = Quantization(linears, calibration.quantization.matmuls)
    changed = Calibration(calibration.encoder, quantization, calibration.regcache, found.warnings)
    return changed, found


def _symmetric(name: str, limit: float, bits: int, device: torch.device) -> Uniform:
    quantizer = Uniform.symmetric(torch.full((), limit, device=device), bits)
    check_scale(name, quantizer)
    return quantizer


def _pass(
    encoder: Encoder,
    batches: Batches,
    regcache: RegCache | None,
    look: Callable[[str, Tensor], T | None],
    keep: Callable[[str, T], None],
) -> int:
    """Number of images. `keep` gets what `look` found in a batch, once all its blocks have run."""

    def run(tokens: Tensor) -> list[tuple[str, T]]:
        found: list[tuple[str, T]] = []

        def see(name: str, x: Tensor) -> None:
            check_finite(name, x)
            if (each := look(name, x)) is not None:
                found.append((name, each))

        encoder.run_blocks(tokens, numerics=Watched(see), regcache=regcache)
        return found

    seen = 0
    for tokens in batches():
        for found in halving(run, tokens):
            for name, each in found:
                keep(name, each)
        seen += len(tokens)
        del tokens  # before the next ones are made
    return seen
