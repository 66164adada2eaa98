"""Kinder and harder demos: exact edits of the demo's weights, made while it is loaded.

The demo is a caricature in two ways: its spike is far larger than what is published, and the fc2
column of the unit that carries it is empty but for one entry, so that scaling that channel (as
SmoothQuant does) costs nothing. `demo-dense` fills the column, `demo-mild-*` lower the spike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..errors import ConfigError, ModelError
from .canonical import Encoder
from .settings import DEMO

ADDED_UNITS = 16
"""By which every MLP grows for a dense column: two are used, and widths stay multiples of 16."""

SEED = 0


@dataclass(frozen=True)
class Variant:
    """How a demo differs from the one that was trained.

    Attributes:
        dense: two more units carry the spike, with fc2 columns `v` and `-v` of ordinary size. They
            cancel, so the float function stays.
        milder: the spike is divided by it, the column multiplied. QuickGELU is all but the identity
            at these values, so the float function stays up to its saturation.
    """

    dense: bool = False
    milder: float = 1.0

    @property
    def caution(self) -> str:
        """What is said of the variant beside the demo's own caution."""
        words = [f"spike divided by {self.milder:g}"] if self.milder != 1 else []
        words += ["spike's column of ordinary size"] if self.dense else []
        return ", ".join(words)


VARIANTS: Mapping[str, Variant] = {
    "demo-dense": Variant(dense=True),
    "demo-dense-8": Variant(dense=True, milder=8),
    "demo-mild-8": Variant(milder=8),
    "demo-mild-32": Variant(milder=32),
}
"""`--model` name -> variant."""


def edit(encoder: Encoder, variant: Variant, plant: Mapping[str, Any]) -> Encoder:
    """Apply a variant to the demo's encoder.

    Args:
        encoder: of the demo.
        variant: what to change.
        plant: the demo's `config["plant"]`: block, spike_unit, coordinate.
    """
    if variant.milder != 1:
        encoder = _milder(encoder, variant.milder, plant["block"], plant["spike_unit"])
    if variant.dense:
        encoder = _dense(encoder, plant["block"], plant["spike_unit"], plant["coordinate"])
    return encoder


def _milder(encoder: Encoder, factor: float, block: int, unit: int) -> Encoder:
    name = f"blocks.{block}.mlp"
    fc1, bias, fc2 = (
        encoder.weights[f"{name}.{part}"].clone()
        for part in ("fc1.weight", "fc1.bias", "fc2.weight")
    )
    fc1[unit] /= factor
    bias[unit] /= factor
    fc2[:, unit] *= factor
    return encoder.replace(
        {f"{name}.fc1.weight": fc1, f"{name}.fc1.bias": bias, f"{name}.fc2.weight": fc2}
    )


def _dense(encoder: Encoder, block: int, unit: int, coordinate: int) -> Encoder:
    weights = dict(encoder.weights)
    for index in range(encoder.spec.depth):
        name = f"blocks.{index}.mlp"
        fc1, bias, fc2 = (
            weights[f"{name}.{part}"] for part in ("fc1.weight", "fc1.bias", "fc2.weight")
        )
        rows = fc1.new_zeros(ADDED_UNITS, fc1.shape[1])
        offsets, columns = bias.new_zeros(ADDED_UNITS), fc2.new_zeros(len(fc2), ADDED_UNITS)
        if index == block:
            spread = float(fc2[torch.arange(len(fc2)) != coordinate].std())
            column = spread * torch.randn(len(fc2), generator=torch.Generator().manual_seed(SEED))
            column[coordinate] = 0  # reserved: nothing but the planting writes there
            rows[:2], offsets[:2] = fc1[unit], bias[unit]
            columns[:, 0], columns[:, 1] = column, -column
        weights[f"{name}.fc1.weight"] = torch.cat([fc1, rows])
        weights[f"{name}.fc1.bias"] = torch.cat([bias, offsets])
        weights[f"{name}.fc2.weight"] = torch.cat([fc2, columns], dim=1)
    spec = replace(encoder.spec, mlp_width=encoder.spec.mlp_width + ADDED_UNITS)
    return Encoder(spec, weights)


def check_demo(name: str, pretrained: str | None) -> None:
    """Raise ModelError where there is no such demo, ConfigError for weights of another."""
    if name != DEMO and name not in VARIANTS:
        raise ModelError(f"unknown model '{name}'; the demos are: {', '.join([DEMO, *VARIANTS])}")
    if pretrained is not None:
        raise ConfigError("the demo brings its own weights; --pretrained goes with --model NAME")
