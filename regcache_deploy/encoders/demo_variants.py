"""Kinder and harder demos: exact edits of the demo's weights, made while it is loaded.

The demo is a caricature in two ways: its spike is far larger than what is published, and the fc2
column of the unit that carries it is empty but for one entry, so that scaling that channel (as
SmoothQuant does) costs nothing. `demo-dense` fills the column, `demo-mild-*` lower the spike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from .canonical import Encoder
from .demo_names import Variant

ADDED_UNITS = 16
"""By which every MLP grows for a dense column: two are used, and widths stay multiples of 16."""

SEED = 0


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
