"""Every comparison has its corners: the baseline alone, each half, saturation, and the choice."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..encoders.canonical import Encoder
from ..encoders.regcache import RegCache, RegCacheConfig
from ..progress import Reporter
from ..quantization import Calibration, Quantization, make_baseline
from ..quantization.baselines import Baseline

if TYPE_CHECKING:
    from ..image_sets import ImageSets


def corner_configs(config: RegCacheConfig) -> dict[str, RegCacheConfig]:
    """The corners of a choice, by their names in reports.

    `delete_only` keeps both delete counts and has no prefix. `saturate` has the prefix, ranges set
    without the sinks, and a graph that deletes none of them.
    """
    return {
        "baseline": replace(config, prefix_count=0).deleting(0),
        "prefix_only": config.deleting(0),
        "delete_only": replace(config, prefix_count=0),
        "saturate": config.deleting(0, config.range_delete_count),
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
    """Embeddings `[n, E]` of the quantized simulation over batches of images."""
    numerics = calibration.numerics()
    features = []
    for images in batches:
        features.append(calibration.encoder(images, numerics, calibration.regcache))
        advance(1)
    return torch.cat(features)


@torch.no_grad()
def evaluate_corners(
    baseline: Baseline,
    encoder: Encoder,
    sets: ImageSets,
    config: RegCacheConfig,
    register: dict[int, Tensor],
    batch_size: int,
    reporter: Reporter,
) -> tuple[dict[str, Tensor], Calibration]:
    """Run the evaluation images through FP32 and every corner.

    Returns:
        Corner -> embeddings `[n, E]`, with `paper/baseline` and `paper/regcache` where the
        published quantizers differ from the deployed ones; and the calibration of `regcache`.
    """
    configs = corner_configs(config)
    runs = [(name, corner, baseline) for name, corner in configs.items()]
    if baseline.differences and baseline.form == "deploy":
        paper = make_baseline(baseline.name, baseline.bits, "paper")
        runs += [(f"paper/{name}", configs[name], paper) for name in ("baseline", "regcache")]
    features: dict[str, Tensor] = {}
    batches = -(-len(sets.evaluation) // batch_size)
    with reporter.stage("evaluation of all corners", (len(runs) + 1) * batches) as advance:
        plain = Calibration(encoder, Quantization())
        features["fp32"] = simulate(plain, sets.evaluation.batches(batch_size), advance)
        ran: dict[tuple[RegCacheConfig, str], tuple[Tensor, Calibration]] = {}
        for name, corner, quantizer in runs:
            key = corner, quantizer.form
            if key in ran:
                advance(batches)
            else:
                calibration = calibrate_corner(
                    quantizer, encoder, sets.calibration_tokens, corner, register
                )
                found = simulate(calibration, sets.evaluation.batches(batch_size), advance)
                ran[key] = found, calibration
            features[name] = ran[key][0]
    return features, ran[config, baseline.form][1]
