"""A linear whose input is treated per channel before it is quantized, in the simulation.

`regcache_export.treated` has the formula and the same for the graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from regcache_export.tensor_quant import LinearQuant


@dataclass(frozen=True, eq=False)
class TreatedInput:
    """Factors on the input's channels, and channels that are not quantized.

    Attributes:
        multiplier: `[C_in]` powers of two, or None; the integer weight is divided by them.
        float_channels: `[c]` int64, or None; their share of the product is in floating point.
    """

    multiplier: Tensor | None = None
    float_channels: Tensor | None = None

    def __bool__(self) -> bool:
        return self.multiplier is not None or self.float_channels is not None

    def input(self, x: Tensor) -> Tensor:
        """What is quantized, `[..., C_in]`. Codes of the float channels count for nothing."""
        return x if self.multiplier is None else x * self.multiplier.to(x)

    def weight(self, weight: Tensor) -> Tensor:
        """What the integer product multiplies with, `[C_out, C_in]`."""
        if self.multiplier is not None:
            weight = weight / self.multiplier.to(weight)
        if self.float_channels is not None:
            weight = weight.index_fill(1, self.float_channels.to(weight.device), 0.0)
        return weight

    def ranged(self, x: Tensor) -> Tensor:
        """The part of an input or weight (last axis C_in) that a range is set for.

        Of an input: `ranged(input(x))`; of a weight: `ranged(weight(w))`.
        """
        if self.float_channels is None:
            return x
        kept = torch.ones(x.shape[-1], dtype=torch.bool, device=x.device)
        kept[self.float_channels.to(x.device)] = False
        return x[..., kept]

    def add_float(self, y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """The product's float share added to `y [..., C_out]`; `x` and `weight` as they are."""
        if self.float_channels is None:
            return y
        channels = self.float_channels.to(x.device)
        return y + F.linear(x[..., channels], weight[:, channels])

    def note(self) -> str:
        """In words, to follow a quantizer's description; empty where nothing is done."""
        parts = [] if self.multiplier is None else [", smoothed by channel"]
        if self.float_channels is not None:
            parts.append(f", {len(self.float_channels)} channels in float")
        return "".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Numbers, for keys of what is kept of a calibration."""
        return {name: None if v is None else v.tolist() for name, v in vars(self).items()}


UNTREATED = TreatedInput()


def treated_arrays(
    treated: TreatedInput,
) -> tuple[npt.NDArray[np.float32] | None, npt.NDArray[np.int64] | None]:
    """Factors and channels as a plan's `LinearQuant` holds them."""
    multiplier, channels = treated.multiplier, treated.float_channels
    return (
        None if multiplier is None else multiplier.cpu().float().numpy().copy(),
        None if channels is None else channels.cpu().numpy().copy(),
    )


def treated_of(layer: LinearQuant) -> TreatedInput:
    """The inverse of `treated_arrays`."""
    multiplier, channels = (
        None if array is None else torch.from_numpy(np.array(array))
        for array in (layer.input_multiplier, layer.float_channels)
    )
    return TreatedInput(multiplier, channels)
