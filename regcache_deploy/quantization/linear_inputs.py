"""What a batch shows of the inputs of linears: a worker looks, and who asked adds up.

Extremes and counts know no order: any number of workers finds what one process finds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..encoders.canonical import Encoder
from ..encoders.regcache import RegCache
from ..encoders.watching import Watched
from ..work.devices import halving
from ..work.workers import Place
from .baselines.base import check_finite
from .histogram import Histogram
from .simulate import Calibration, Quantization, moved
from .treated_input import UNTREATED, TreatedInput


@dataclass(frozen=True)
class Look:
    """What to look at.

    Attributes:
        tokens: `[b, N, D]` at the input of block 0.
        limits: layer -> limit of the histogram to fill; None: find the extremes of all.
    """

    tokens: Tensor
    limits: Mapping[str, float] | None


@dataclass
class Seen:
    """What batches showed.

    Attributes:
        images: how many there were.
        extremes: layer -> least and greatest value. Numbers, since small tensors that stay would
            hold the heap apart.
        counts: layer -> counts of |x|, int64 `[bins]`.
    """

    images: int = 0
    extremes: dict[str, tuple[float, float]] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)

    def add(self, other: Seen) -> None:
        """What further batches showed, whose counts may become these."""
        self.images += other.images
        for name, (low, high) in other.extremes.items():
            least, greatest = self.extremes.get(name, (low, high))
            self.extremes[name] = min(low, least), max(high, greatest)
        for name, counts in other.counts.items():
            if name in self.counts:
                self.counts[name] += counts
            else:
                self.counts[name] = counts


@dataclass(frozen=True)
class LinearInputs:
    """The inputs of some linears in the float model; a `Station` of workers.

    Attributes:
        encoder: in floating point.
        names: the linears.
        regcache: active, with every token absent that the ranges are set without.
        treated: layer -> how its input is treated before it is quantized.
    """

    encoder: Encoder
    names: frozenset[str]
    regcache: RegCache | None
    treated: Mapping[str, TreatedInput]

    def to(self, device: torch.device) -> LinearInputs:
        """The same on a device."""
        placed = Calibration(self.encoder, Quantization(), self.regcache).to(device)
        treated = {name: moved(how, device) for name, how in self.treated.items()}
        return LinearInputs(placed.encoder, self.names, placed.regcache, treated)

    def open(self, place: Place) -> Callable[[Look], Seen]:
        """What looks, at that place."""
        return self.to(place.device).look

    @torch.no_grad()
    def look(self, look: Look) -> Seen:
        """What a batch shows.

        Raises:
            DataError: a value that is not finite; the message names the layer.
        """
        seen = Seen(images=len(look.tokens))
        tokens = look.tokens.to(self.encoder.device)
        for found in halving(lambda part: self._run(part, look.limits), tokens):
            if look.limits is None:
                pairs = {name: extremes.tolist() for name, extremes in found.items()}
                seen.add(Seen(extremes={name: (low, high) for name, (low, high) in pairs.items()}))
            else:
                seen.add(Seen(counts=found))
        return seen

    def _run(self, tokens: Tensor, limits: Mapping[str, float] | None) -> dict[str, Tensor]:
        """Extremes `[2]`, left on the device so that nothing waits for it, or counts."""
        found: dict[str, Tensor] = {}

        def see(name: str, x: Tensor) -> None:
            check_finite(name, x)
            if name not in (self.names if limits is None else limits):
                return
            how = self.treated.get(name, UNTREATED)
            values = how.ranged(how.input(x))
            if limits is None:
                found[name] = torch.stack(torch.aminmax(values))
            else:
                found[name] = Histogram(limits[name]).count(values)

        self.encoder.run_blocks(tokens, numerics=Watched(see), regcache=self.regcache)
        return found
