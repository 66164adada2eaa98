"""Calibration over any number of images in constant memory: running ranges and histograms.

Pass 1 finds the range of every linear's input; pass 2, for observers that look inside the range,
counts values in bins of fixed width. What is kept does not grow with the number of images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regcache_export.passes import make_folds

from ..encoders.canonical import Encoder
from ..encoders.regcache import RegCache
from ..errors import ConfigError, DataError
from ..work.workers import Team
from .baselines.base import check_scale
from .encoder_folds import CALIBRATION_FOLDS, apply_folds
from .histogram import Histogram, Observer, check_observer
from .linear_inputs import LinearInputs, Look, Seen
from .quantizers import Bits, Uniform, symmetric_weight
from .simulate import Calibration, LinearQuantization, Quantization
from .treated_input import TreatedInput

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
    team: Team | None = None,
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
        team: workers that look at the batches, each at some; None looks here. The limits are the
            same: they come of maxima and counts, which know no order.

    Raises:
        ConfigError: an unknown observer.
        DataError: no images, another number of them in the second pass, or non-finite
            activations; the message names the layer.
    """
    check_observer(observer)
    present = regcache.for_ranges() if regcache else None
    inputs = LinearInputs(encoder, frozenset(bits), present, treated or {})
    first = _pass(inputs, batches, None, team)
    if not (images := first.images):
        raise DataError("calibration needs at least one image")
    largest = {name: max(abs(low), abs(high)) for name, (low, high) in first.extremes.items()}
    if observer == "minmax":
        return StreamedLimits(largest, largest, images, 16 * len(largest))
    counted = {name: limit for name, limit in largest.items() if limit > 0}
    again = _pass(inputs, batches, counted, team)
    if again.images != images:
        raise DataError(f"the second pass found {again.images} images and the first one {images}")
    limits = dict(largest)
    for name, limit in counted.items():
        limits[name] = Histogram(limit, again.counts[name]).clipping(observer, bits[name])
    held = sum(each.numel() * each.element_size() for each in again.counts.values())
    return StreamedLimits(limits, largest, images, held + 16 * len(largest))


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
    calibration: Calibration,
    batches: Batches,
    observer: Observer = "minmax",
    team: Team | None = None,
) -> tuple[Calibration, StreamedLimits]:
    """The same calibration with the ranges of its activations measured anew.

    Weights, their quantizers, treated inputs, RegCache and the linears in float stay what they are.

    Args: as `stream_limits`.

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
        calibration.encoder, batches, widths, observer, calibration.regcache, treated, team
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
    inputs: LinearInputs, batches: Batches, limits: Mapping[str, float] | None, team: Team | None
) -> Seen:
    """What all batches show together."""

    def looks() -> Iterator[Look]:
        for tokens in batches():
            yield Look(tokens if team is None else tokens.cpu(), limits)
            del tokens  # before the next ones are made

    if team is None:
        answers: Iterable[Seen] = map(inputs.look, looks())
    else:
        answers = (seen for _, seen in team.answers(inputs, looks()))
    together = Seen()
    for seen in answers:
        together.add(seen)
    return together
