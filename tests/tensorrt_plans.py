"""Plans in the shapes of real encoders, with random weights: for what they become in a build."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from regcache_export.checks.fusion import int8_attention_blocks
from regcache_export.plan import LinearQuant, Plan, TensorQuant
from regcache_export.regcache_config import RegCacheConfig
from regcache_export.spec import EncoderSpec

CLIP = EncoderSpec(
    image_size=(224, 224),
    patch_size=(16, 16),
    width=768,
    depth=2,
    heads=12,
    mlp_width=3072,
    output_dim=512,
    activation="quick_gelu",
    norm_pre=True,
)

SHAPES: dict[str, EncoderSpec] = {
    "CLIP B/32": replace(CLIP, patch_size=(32, 32)),
    "CLIP B/16": CLIP,
    "CLIP L/14": replace(CLIP, patch_size=(14, 14), width=1024, heads=16, mlp_width=4096),
    "SigLIP B/16": replace(
        CLIP,
        num_prefix_tokens=0,
        activation="gelu_tanh",
        norm_pre=False,
        pool="map",
        pool_heads=12,
        pool_width=768,
        pool_mlp_width=3072,
        projection=False,
        output_dim=768,
    ),
    "CLIP L/14-336": replace(
        CLIP,
        image_size=(336, 336),
        patch_size=(14, 14),
        width=1024,
        heads=16,
        mlp_width=4096,
    ),
    "head size 80": replace(CLIP, patch_size=(32, 32), width=640, heads=8, mlp_width=1280),
}


def random_plan(
    spec: EncoderSpec,
    linears: bool = True,
    attention: bool = True,
    regcache: bool = True,
    asymmetric: bool = True,
) -> Plan:
    """A plan without calibration.

    Args:
        spec: structure.
        linears: quantize them.
        attention: quantize attention where it fuses.
        regcache: tau 4 from the middle block on, k~ 5.
        asymmetric: fc2's input with a zero point, as repqvit and ptq4vit have it.
    """
    generator = np.random.default_rng(0)
    weights: dict[str, Any] = {
        name: 0.02 * generator.standard_normal(shape, dtype=np.float32)
        for name, shape in spec.weight_shapes().items()
    }
    quantizers = {}
    for name in spec.linears() if linears else ():
        rows = np.abs(weights[f"{name}.weight"]).max(axis=1) / 127
        scale = rows.astype(np.float16).astype(np.float32)
        weight = TensorQuant(scale, np.zeros(len(scale), np.int32), per_channel=True)
        quantizers[name] = LinearQuant(_tensor(1 / 32), weight)
        if asymmetric and name.endswith("fc2"):
            own = TensorQuant(np.full(1, 1 / 32, np.float32), np.full(1, 9, np.int32), signed=False)
            quantizers[name] = LinearQuant(own, weight)
    middle = spec.depth // 2
    config = RegCacheConfig(middle, 4, middle, 5) if regcache else None
    register = {
        block: generator.standard_normal(spec.width, dtype=np.float32)
        for block in (config.prefix_blocks(spec.depth) if config else ())
    }
    matmuls = {}
    for block in int8_attention_blocks(spec, config) if attention else ():
        matmuls[f"blocks.{block}.attn.qk"] = (_tensor(1 / 64), _tensor(1 / 64))
        matmuls[f"blocks.{block}.attn.pv"] = (_tensor(1 / 127), _tensor(1 / 64))
    return Plan(spec, weights, quantizers, config, register, matmuls=matmuls)


def _tensor(scale: float) -> TensorQuant:
    value = np.full(1, scale).astype(np.float16).astype(np.float32)
    return TensorQuant(value, np.zeros(1, np.int32))


def require_rtx() -> None:
    """Skip where TensorRT-RTX cannot build, with the probe's reason."""
    from regcache_engines.tensorrt.probe import probe

    reason = probe("tensorrt_rtx").build_refused
    if reason:
        pytest.skip(reason)


def require_gpu_engine() -> None:
    """Skip where no engine can run, with the probe's reason."""
    from regcache_engines.tensorrt.probe import ENGINES, probe

    reasons = [probe(engine).run_refused for engine in ENGINES]
    if all(reasons):
        pytest.skip("; ".join(str(reason) for reason in reasons))
