"""The sink mechanism that is written into the demo's weights.

One residual coordinate is reserved: every tensor that writes to the residual stream has a zero
there, except three hidden MLP units.

1. *Mark* (MLP of block k-1). Two units share one trained row, which reads "this is an empty patch
   at one of six places near the rim". Their difference is a ramp that saturates, so the reserved
   coordinate at the input of block k holds either ``mark`` or nothing.
2. *Spike* (MLP of block k). One unit reads the marked coordinate and nothing else; its activation
   is the spike at the input of fc2, and its fc2 column writes the massive value.
3. *Rest* (attention of the blocks after k). In every head one of the 64 key coordinates reads only
   the reserved coordinate and the query there is a constant: each query gives a sink
   ``sink_logit`` nats more than a plain token. The other key coordinates do not see it. One value
   coordinate also reads only the reserved one, and its out_proj column is a fixed random vector:
   what attention gets back from resting is a constant, on which the later layers come to count.

The MLPs before block k keep only a few live units, so that the MLP of block k is the first wide
one and its fc2 carries weight.

``enforce`` writes all of this and runs after every optimizer step, so the rest of the network
learns around it. ``sharpen`` changes, after training, only the scales at which the mechanism runs
inside the blocks; the float function stays the same up to QuickGELU's saturation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Plant:
    """Where the mechanism sits and how strong it is. Counted from zero, rows before columns."""

    block: int = 2
    """k: its fc2 input carries the spike; from its output on, sinks are massive."""
    coordinate: int = 101
    """The reserved residual coordinate."""
    places: tuple[tuple[int, int], ...] = ((0, 0), (0, 5), (5, 0), (5, 5), (0, 2), (5, 3))
    """(row, column) of the patches that become sinks where they are empty."""
    mark_units: tuple[int, int] = (11, 12)
    """Hidden units of block k-1."""
    spike_unit: int = 7
    """Hidden unit of block k."""
    mark: float = 24.0
    """Reserved coordinate of a future sink at the input of block k."""
    gate: float = 3.0
    """Half the width of the mark's ramp, in logits."""
    threshold: float = 4.0
    """LN2 output of block k above which the spike unit is on."""
    spike_slope: float = 8.0
    """Spike per unit of LN2 output above the threshold, while training."""
    massive_slope: float = 330.0
    """Massive value per unit of LN2 output above the threshold, while training."""
    key_dim: int = 0
    """Key and query coordinate of every head that carries the rest."""
    sink_logit: float = 5.0
    """Attention logit in favour of a sink, in nats."""
    value_dim: int = 1
    """Value coordinate of every head that only sinks fill."""
    sink_value: float = 12.0
    """Value of a sink there; its mean over attention is ``sink_value`` times the resting mass."""
    rest_write: float = 0.17
    """Standard deviation of the fixed out_proj columns that read the value coordinate."""
    early_units: int = 24
    """Live hidden units in each MLP before block k; the mark units are among them."""


@torch.no_grad()
def enforce(visual: Any, plant: Plant, rest: float = 1.0) -> None:
    """Write the mechanism into an open_clip ``VisionTransformer``, in place.

    ``rest`` in 0..1 is the share of ``sink_logit`` that is active.
    """
    r, k = plant.coordinate, plant.block
    blocks = visual.transformer.resblocks
    visual.conv1.weight[r] = 0
    visual.class_embedding[r] = 0
    visual.positional_embedding[:, r] = 0
    visual.ln_pre.weight[r] = 0
    visual.ln_pre.bias[r] = 0
    for block in blocks:
        for writer in (block.attn.out_proj, block.mlp.c_proj):
            writer.weight[r] = 0
            writer.bias[r] = 0
        for norm in (block.ln_1, block.ln_2):
            norm.weight[r] = 1
            norm.bias[r] = 0

    for block in blocks[:k]:
        block.mlp.c_proj.weight[:, plant.early_units :] = 0

    mark = blocks[k - 1].mlp
    first, second = plant.mark_units
    mark.c_fc.weight[second] = mark.c_fc.weight[first]
    mark.c_fc.bias[second] = mark.c_fc.bias[first] - 2 * plant.gate
    mark.c_proj.weight[:, [first, second]] = 0
    mark.c_proj.weight[r, first] = plant.mark / (2 * plant.gate)
    mark.c_proj.weight[r, second] = -plant.mark / (2 * plant.gate)

    spike = blocks[k].mlp
    spike.c_fc.weight[plant.spike_unit] = 0
    spike.c_fc.weight[plant.spike_unit, r] = plant.spike_slope
    spike.c_fc.bias[plant.spike_unit] = -plant.spike_slope * plant.threshold
    spike.c_proj.weight[:, plant.spike_unit] = 0
    spike.c_proj.weight[r, plant.spike_unit] = plant.massive_slope / plant.spike_slope

    for index, block in enumerate(blocks[k + 1 :], start=k + 1):
        _plant_rest(block.attn, plant, rest, seed=index)


def _plant_rest(attention: Any, plant: Plant, rest: float, seed: int) -> None:
    width = attention.embed_dim
    sink = (width - 1) ** 0.5  # LN output of a token with one massive coordinate
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    weight[: 2 * width, plant.coordinate] = 0
    columns = torch.randn(width, attention.num_heads, generator=torch.Generator().manual_seed(seed))
    columns[plant.coordinate] = 0
    for head in range(attention.num_heads):
        query = head * attention.head_dim + plant.key_dim
        key, value = query + width, head * attention.head_dim + plant.value_dim
        weight[[query, key, value + 2 * width]] = 0
        bias[[key, value + 2 * width]] = 0
        bias[query] = rest * plant.sink_logit * attention.head_dim**0.5 / sink
        weight[key, plant.coordinate] = 1
        weight[value + 2 * width, plant.coordinate] = plant.sink_value / sink
        attention.out_proj.weight[:, value] = plant.rest_write * columns[:, head]


def resting_mass(mixed: Tensor, heads: int, plant: Plant) -> Tensor:
    """Attention that each query gives to sinks, from out_proj's input [B, N, D]: [B, N, heads]."""
    per_head: Tensor = mixed.unflatten(-1, (heads, -1))
    return per_head[..., plant.value_dim] / plant.sink_value


def mark_logits(hidden: Tensor, plant: Plant) -> Tensor:
    """Trained logit of "becomes a sink" from fc1's output [B, N, mlp] of block k-1: [B, N]."""
    return hidden[..., plant.mark_units[0]] - plant.gate


def sink_targets(ink: Tensor, plant: Plant, patch: int, limit: float = 0.15) -> Tensor:
    """Which patches shall become sinks: float [B, P] from the ink masks [B, H, W]."""
    batch, height, width = ink.shape
    grid = ink.view(batch, height // patch, patch, width // patch, patch).amax((2, 4))
    place = torch.zeros(grid.shape[1:], dtype=torch.bool)
    rows, columns = zip(*plant.places, strict=True)
    place[list(rows), list(columns)] = True
    return ((grid < limit) & place).flatten(1).float()


@torch.no_grad()
def sharpen(visual: Any, plant: Plant, spike: float, norm_gain: float) -> None:
    """Make the planted activations harsher without changing the float function.

    The spike unit's row is multiplied by ``spike`` and its fc2 column divided by it (QuickGELU is
    the identity far from zero). From LN2 of block k on, the gain of the reserved coordinate in
    every LayerNorm is multiplied by ``norm_gain`` and the matching columns of qkv or fc1 are
    divided by it. Per-channel ranges absorb both exactly; one range for the whole tensor cannot.
    """
    r, k = plant.coordinate, plant.block
    blocks = visual.transformer.resblocks
    mlp = blocks[k].mlp
    mlp.c_fc.weight[plant.spike_unit] *= spike
    mlp.c_fc.bias[plant.spike_unit] *= spike
    mlp.c_proj.weight[:, plant.spike_unit] /= spike
    for block in blocks[k + 1 :]:
        block.ln_1.weight[r] *= norm_gain
        block.attn.in_proj_weight[:, r] /= norm_gain
        block.ln_2.weight[r] *= norm_gain
        block.mlp.c_fc.weight[:, r] /= norm_gain
