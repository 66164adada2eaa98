"""Every comparison has its corners: the baseline alone, each half, saturation, and the choice."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from ..encoders.canonical import Encoder
from ..encoders.regcache import RegCache, RegCacheConfig
from ..quantization.baselines import Baseline
from ..quantization.simulate import Calibration
from ..work.devices import halving
from ..work.gathered import Gathered


def corner_configs(config: RegCacheConfig) -> dict[str, RegCacheConfig]:
    """The corners of a choice, by their names in reports.

    `delete_only` keeps both delete counts and has no prefix. `saturate` has the prefix, ranges set
    without the sinks, and a graph that deletes none of them; `delete` deletes them all, as
    published.
    """
    return {
        "baseline": replace(config, prefix_count=0).deleting(0),
        "prefix_only": config.deleting(0),
        "delete_only": replace(config, prefix_count=0),
        "saturate": config.deleting(0, config.range_delete_count),
        "delete": config.for_ranges(),
        "regcache": config,
    }


def calibrate_corner(
    baseline: Baseline,
    encoder: Encoder,
    tokens: Tensor,
    config: RegCacheConfig,
    register: dict[int, Tensor],
) -> Calibration:
    """Calibrate the whole encoder with one corner in place.

    Args:
        tokens: `[c, N, D]` at the input of block 0.
        register: of `config.prefix_block`; unused without a prefix.
    """
    regcache = None
    if not config.is_empty:
        regcache = RegCache(config, register if config.has_prefix else {})
    return baseline.calibrate(encoder, tokens, regcache=regcache)


@torch.no_grad()
def simulate(
    calibration: Calibration, batches: Iterable[Tensor], advance: Callable[[int], None]
) -> Tensor:
    """Embeddings `[n, E]`, on the CPU, of the quantized simulation over batches of images."""
    numerics = calibration.numerics()
    features = Gathered()

    def run(images: Tensor) -> Tensor:
        return calibration.encoder(images, numerics, calibration.regcache).cpu()

    for images in batches:
        for part in halving(run, images):
            features.add(part)
        advance(1)
    return features.rows
