"""Tiny encoders with random weights, and plans made from them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from regcache_deploy.encoders.canonical import Encoder
from regcache_deploy.encoders.regcache import RegCache, RegCacheConfig
from regcache_deploy.quantization.baselines import make_baseline
from regcache_deploy.quantization.plan import make_plan
from regcache_deploy.quantization.quantizers import Bits
from regcache_deploy.quantization.simulate import Calibration, Quantization
from regcache_export.plan import Plan
from regcache_export.spec import EncoderSpec

SPEC = EncoderSpec(
    image_size=(32, 24),
    patch_size=(8, 8),
    width=48,
    depth=3,
    heads=3,
    mlp_width=80,
    output_dim=20,
)

CHOICE = RegCacheConfig(prefix_block=1, prefix_count=3, delete_block=1, delete_count=4)

PREPROCESS = {
    "size": [32, 24],
    "mode": "RGB",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "interpolation": "bicubic",
}


def tiny_encoder(seed: int = 0, **changes: Any) -> Encoder:
    """Random weights of a size that keeps every part of the network visible in the output."""
    spec = replace(SPEC, **changes)
    if not spec.projection:
        spec = replace(spec, output_dim=spec.width)
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in spec.weight_shapes().items():
        value = torch.randn(shape, generator=generator) * 0.2
        weights[name] = 1 + value if "norm" in name and name.endswith("weight") else value
    return Encoder(spec, weights)


def tame_encoder(**changes: Any) -> Encoder:
    """With smaller logits: attention that hangs on one key turns rounding into chaos."""
    encoder = tiny_encoder(**changes)
    names = [name for name in encoder.weights if "attn.qkv" in name or "fc1.weight" in name]
    return encoder.replace({name: encoder.weights[name] * 0.4 for name in names})


def seeded(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers, float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def tiny_images(count: int, seed: int = 1, size: tuple[int, int] = SPEC.image_size) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, *size, generator=generator)


def tiny_regcache(encoder: Encoder, config: RegCacheConfig = CHOICE) -> RegCache:
    generator = torch.Generator().manual_seed(2)
    blocks = config.prefix_blocks(encoder.spec.depth)
    return RegCache(
        config, {i: torch.randn(encoder.spec.width, generator=generator) for i in blocks}
    )


def float_calibration(encoder: Encoder, regcache: RegCache | None = None) -> Calibration:
    return Calibration(encoder, Quantization(), regcache)


def naive_calibration(
    encoder: Encoder, regcache: RegCache | None = None, bits: Bits | None = None
) -> Calibration:
    tokens = encoder.embed(tiny_images(8, seed=3, size=encoder.spec.image_size))
    return make_baseline("naive", bits).calibrate(encoder, tokens, regcache=regcache)


def tiny_plan(quantized: bool = True, **changes: Any) -> Plan:
    """A plan with everything in it: RegCache, zero-shot head, preprocessing, provenance."""
    encoder = tiny_encoder(**changes)
    regcache = tiny_regcache(encoder)
    make = naive_calibration if quantized else float_calibration
    head = torch.nn.functional.normalize(torch.randn(4, encoder.spec.output_dim), dim=-1)
    return make_plan(
        make(encoder, regcache),
        regcache_config=regcache.config,
        preprocess=PREPROCESS,
        text_features=head,
        labels=("cat", "dog", "été", "four"),
        logit_scale=50.0,
        provenance={"model": "tiny", "baseline": "naive", "seed": 0},
    )
