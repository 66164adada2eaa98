"""A ViT of any size with random weights and planted sinks: the demo's mechanism without training.

For tests and for measurements of cost and decision quality. Sinks sit at fixed places of the image,
because a random network knows nothing about images; everything behind them is `planting.enforce`
and `planting.sharpen`, as in the demo. No figure from it says anything about natural models.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from regcache_deploy.compat import import_open_clip
from regcache_deploy.demo.planting import Plant, enforce, sharpen
from regcache_deploy.encoders.model import LoadedModel
from regcache_deploy.encoders.open_clip_vit import from_open_clip

PLACE_COORDINATE = 5
"""Residual coordinate through which the position embedding names the future sinks."""

PLACE_STRENGTH = 8.0
"""Of the position embedding there, in standard deviations of its other coordinates."""

MARK_LOGIT = 10.0
"""Logit of the mark at a sink; its negative elsewhere."""


@dataclass(frozen=True)
class Structure:
    """Size of the encoder; the default is that of ViT-B/16.

    Attributes:
        sinks: how many places of the image are sinks.
        sink_block: k, where they get massive.
        spike, norm_gain: see `planting.sharpen`.
        position_gain: of the position embedding. Random embeddings of flat and of busy patches
            differ so much in size that the marks of places would themselves be outliers.
        sink_logit: see `planting.Plant`. More patches need more, for as much rest.
    """

    image_size: int = 224
    patch_size: int = 16
    width: int = 768
    layers: int = 12
    heads: int = 12
    output_dim: int = 512
    sinks: int = 6
    sink_block: int = 6
    spike: float = 64.0
    norm_gain: float = 4.0
    position_gain: float = 16.0
    sink_logit: float = 7.0

    @property
    def name(self) -> str:
        return (
            f"planted random ViT, width {self.width}, {self.layers} blocks, "
            f"{(self.image_size // self.patch_size) ** 2} patches"
        )


def small(**changes: Any) -> Structure:
    """ViT-B/16's depth at a size that a full grid can be run on."""
    values: dict[str, Any]
    values = {"image_size": 40, "patch_size": 8, "width": 64, "heads": 2, "output_dim": 32}
    values |= {"sinks": 4, "position_gain": 1.0, "sink_logit": 5.0}
    return Structure(**(values | changes))


@dataclass(frozen=True)
class PlantedVit:
    """The encoder and the answer that a search should find."""

    visual: Any = field(repr=False)
    plant: Plant
    sink_tokens: tuple[int, ...]


@torch.no_grad()
def build(structure: Structure, seed: int = 0) -> PlantedVit:
    """Random weights of open_clip's `VisionTransformer`, then the planting."""
    import_open_clip()
    from open_clip.transformer import VisionTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        visual = VisionTransformer(
            image_size=structure.image_size,
            patch_size=structure.patch_size,
            width=structure.width,
            layers=structure.layers,
            heads=structure.heads,
            mlp_ratio=4.0,
            output_dim=structure.output_dim,
        ).eval()
        probe = torch.randn(2, 3, structure.image_size, structure.image_size)
    visual.requires_grad_(requires_grad=False)
    visual.positional_embedding *= structure.position_gain
    side = structure.image_size // structure.patch_size
    places = _rim(side, structure.sinks)
    tokens = tuple(1 + row * side + column for row, column in places)
    plant = Plant(
        block=structure.sink_block,
        coordinate=structure.width // 3,
        places=places,
        early_units=4 * structure.width,
        massive_slope=110.0,
        sink_logit=structure.sink_logit,
    )
    _write_places(visual, tokens)
    enforce(visual, plant)
    _write_marks(visual, plant, tokens, probe)
    enforce(visual, plant)  # the second unit of each pair follows the first
    sharpen(visual, plant, structure.spike, structure.norm_gain)
    return PlantedVit(visual, plant, tokens)


def load(structure: Structure, seed: int = 0) -> LoadedModel:
    """The encoder as `load_model` would hand it over."""
    size = structure.image_size
    return LoadedModel(
        name=structure.name,
        pretrained=f"random:{seed}",
        encoder=from_open_clip(build(structure, seed).visual),
        preprocess={
            "size": [size, size],
            "mode": "RGB",
            "mean": [0.35] * 3,
            "std": [0.2] * 3,
            "interpolation": "bicubic",
            "resize_mode": "shortest",
            "fill_color": 0,
        },
        caution="random weights with planted sinks; says nothing about natural models",
    )


def _rim(side: int, count: int) -> tuple[tuple[int, int], ...]:
    """`count` places spread evenly along the rim of a square grid."""
    last = side - 1
    rim = [(0, c) for c in range(last)] + [(r, last) for r in range(last)]
    rim += [(last, c) for c in range(last, 0, -1)] + [(r, 0) for r in range(last, 0, -1)]
    return tuple(rim[i * len(rim) // count] for i in range(count))


def _write_places(visual: Any, tokens: tuple[int, ...]) -> None:
    p = PLACE_COORDINATE
    strength = PLACE_STRENGTH * float(visual.positional_embedding.std())
    visual.conv1.weight[p] = 0
    visual.class_embedding[p] = 0
    visual.positional_embedding[:, p] = 0
    visual.positional_embedding[list(tokens), p] = strength
    for block in visual.transformer.resblocks:
        for writer in (block.attn.out_proj, block.mlp.c_proj):
            writer.weight[p] = 0
            writer.bias[p] = 0


def _write_marks(visual: Any, plant: Plant, tokens: tuple[int, ...], probe: Tensor) -> None:
    """Set the mark units of block k-1 by what its LN2 gives at sinks and elsewhere."""
    block = visual.transformer.resblocks[plant.block - 1]
    seen: list[Tensor] = []
    hook = block.ln_2.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    visual(probe)
    hook.remove()
    values = seen[0][..., PLACE_COORDINATE]
    chosen = torch.zeros(values.shape[1], dtype=torch.bool)
    chosen[list(tokens)] = True
    low, high = float(values[:, ~chosen].max()), float(values[:, chosen].min())
    slope = 2 * MARK_LOGIT / (high - low)
    unit = plant.mark_units[0]
    block.mlp.c_fc.weight[unit] = 0
    block.mlp.c_fc.weight[unit, PLACE_COORDINATE] = slope
    block.mlp.c_fc.bias[unit] = -MARK_LOGIT - slope * low
