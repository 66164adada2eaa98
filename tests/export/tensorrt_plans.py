"""Plans in the shapes of real encoders, with random weights: for what they become in a build.

True widths, head sizes and token counts, and two blocks: each block builds as every other one of
its kind does, and with RegCache the first one is before the prefix, the second one behind it.
`make test-tensorrt` builds all of them in full depth.
"""

from __future__ import annotations

from dataclasses import replace

import gpu_models
import pytest
from gpu_models import B16, SPECS, middle_choice

from regcache_export.plan import Plan
from regcache_export.spec import EncoderSpec

CLIP = replace(B16, depth=2)

SHAPES: dict[str, EncoderSpec] = {
    "CLIP B/32": replace(SPECS["ViT-B-32"], depth=2),
    "CLIP B/16": CLIP,
    "CLIP L/14": replace(SPECS["ViT-L-14"], depth=2),
    "SigLIP B/16": replace(SPECS["ViT-B-16-SigLIP"], depth=2),
    "CLIP L/14-336": replace(SPECS["ViT-L-14"], depth=2, image_size=(336, 336)),
    "head size 80": replace(CLIP, patch_size=(32, 32), width=640, heads=8, mlp_width=1280),
}


def random_plan(
    spec: EncoderSpec, form: str = "int8", regcache: bool = True, asymmetric: bool = True
) -> Plan:
    """`gpu_models.random_plan`; `regcache`: tau 4 from the middle block on, k~ 5."""
    return gpu_models.random_plan(
        spec, form, middle_choice(spec) if regcache else None, asymmetric=asymmetric
    )


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
