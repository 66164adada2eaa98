"""Plans with random weights in the shapes of CLIP's and SigLIP's towers, for engine builds.

The scales are made up: right for layers, speed and size, meaningless for accuracy.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from regcache_export.bundle import write_bundle
from regcache_export.checks.fusion import int8_attention_blocks
from regcache_export.merge import Merge
from regcache_export.plan import LinearQuant, Plan, TensorQuant
from regcache_export.regcache_config import RegCacheConfig
from regcache_export.spec import EncoderSpec
from regcache_export.targets import GraphOptions

TENSORRT = GraphOptions(target="tensorrt")

B16 = EncoderSpec(
    image_size=(224, 224),
    patch_size=(16, 16),
    width=768,
    depth=12,
    heads=12,
    mlp_width=3072,
    output_dim=512,
    activation="quick_gelu",
    norm_pre=True,
)
SPECS = {
    "ViT-B-32": replace(B16, patch_size=(32, 32)),
    "ViT-B-16": B16,
    "ViT-L-14": replace(
        B16, patch_size=(14, 14), width=1024, depth=24, heads=16, mlp_width=4096, output_dim=768
    ),
    "ViT-B-16-SigLIP": replace(
        B16,
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
}
"""By open_clip's names, in full depth."""

FORMS = ("fp16", "int8_linears", "int8")
"""Nothing quantized; the linears; the linears, and attention where it fuses."""


def small_spec() -> EncoderSpec:
    """Two blocks of a narrow B/32."""
    return replace(SPECS["ViT-B-32"], width=128, depth=2, heads=2, mlp_width=512)


def middle_choice(spec: EncoderSpec, tau: int = 4, delete: int = 5) -> RegCacheConfig:
    """A prefix of `tau` from the middle block on, where `delete` tokens go."""
    middle = spec.depth // 2
    return RegCacheConfig(middle, tau, middle, delete)


def random_plan(
    spec: EncoderSpec,
    form: str = "int8",
    regcache: RegCacheConfig | None = None,
    asymmetric: bool = True,
    merge: Merge | None = None,
) -> Plan:
    """A plan without calibration.

    Args:
        spec: structure.
        form: one of `FORMS`.
        regcache: a choice, with a random register.
        asymmetric: fc2's input with a zero point, as repqvit and ptq4vit have it.
        merge: how tokens are merged.
    """
    generator = np.random.default_rng(0)
    weights: dict[str, Any] = {}
    for name, shape in spec.weight_shapes().items():
        value = 0.02 * generator.standard_normal(shape, dtype=np.float32)
        weights[name] = 1 + value if "norm" in name and name.endswith("weight") else value
    linears = {}
    for name in spec.linears() if form != "fp16" else ():
        rows = np.abs(weights[f"{name}.weight"]).max(axis=1) / 127
        scale = rows.astype(np.float16).astype(np.float32)
        weight = TensorQuant(scale, np.zeros(len(scale), np.int32), per_channel=True)
        own = _one(1 / 32)
        if asymmetric and name.endswith("fc2"):
            own = TensorQuant(np.full(1, 1 / 32, np.float32), np.full(1, 9, np.int32), signed=False)
        linears[name] = LinearQuant(own, weight)
    register = {
        block: generator.standard_normal(spec.width, dtype=np.float32)
        for block in (regcache.prefix_blocks(spec.depth) if regcache else ())
    }
    matmuls = {}
    for block in int8_attention_blocks(spec, regcache, merge) if form == "int8" else ():
        matmuls[f"blocks.{block}.attn.qk"] = (_one(1 / 64), _one(1 / 64))
        matmuls[f"blocks.{block}.attn.pv"] = (_one(1 / 127), _one(1 / 64))
    return Plan(spec, weights, linears, regcache, register, matmuls=matmuls, merge=merge)


def random_bundle(
    spec: EncoderSpec,
    path: Path,
    options: GraphOptions,
    form: str = "int8",
    regcache: RegCacheConfig | None = None,
) -> Path:
    """The bundle of `random_plan`."""
    return write_bundle(random_plan(spec, form, regcache), path, options=options)


def _one(scale: float) -> TensorQuant:
    value = np.full(1, scale).astype(np.float16).astype(np.float32)
    return TensorQuant(value, np.zeros(1, np.int32))
