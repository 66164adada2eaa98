"""Every architecture that open_clip lists and the ViT families of timm: exports, or says why not.

`make test` walks a part that has every feature; `make test-encoders` walks all and prints the
score. Structure is true, depth is cut to three blocks, weights are random.
"""

from __future__ import annotations

import functools

import pytest

from regcache_deploy.run.survey import (
    MAX_ERROR,
    Outcome,
    open_clip_architectures,
    score,
    survey,
    timm_architectures,
)

# Small towers of every feature that exports, and one of every reason for a refusal.
QUICK = (
    "ViT-B-32-quickgelu",  # QuickGELU, pre-norm
    "ViT-M-32-alt",
    "ViT-S-32",
    "ViT-S-16-alt",
    "ViT-M-16-alt",  # layer scale
    "coca_ViT-B-32",  # attentional pooling narrower than the tower
    "vit_medium_patch16_gap_256",  # timm's trunk, mean of all tokens, no class token, projection
    "ViT-B-32-SigLIP2-256",  # attention pooling, no class token
    "timm/vit_small_patch14_reg4_dinov2",  # trained registers, no position for prefix tokens
    "timm/deit_tiny_patch16_224",
    "timm/deit3_small_patch16_224",  # position embedding on patches alone
    "timm/vit_tiny_patch16_224",
    "timm/vit_base_patch32_clip_quickgelu_224",  # pre-norm in timm
    "PE-Core-T-16-384",  # rotary positions by pairs, attention pooling of the class token, too
    "timm/vit_small_patch16_dinov3",  # rotary positions by halves, registers
    "RN50",
    "convnext_tiny",
    "swin_base_patch4_window7_224",
    "MobileCLIP-B",  # a convolutional stem with BatchNorm
    "MobileCLIP2-S0",
    "ViTamin-S",  # a stem of residual blocks, GeGLU behind two norms
    "EVA02-B-16",
    "EVA02-E-14",
    "vit_relpos_medium_patch16_cls_224",
    "timm/vit_giant_patch14_dinov2",
    "timm/deit_tiny_distilled_patch16_224",
)

REFUSALS = (
    "convolutional",
    "window attention",
    "post-norm",
    "relative position bias",
    "distillation token",
)
"""Features that the project refuses; another reason is a bug."""

ALL = [*open_clip_architectures(), *timm_architectures()]


@functools.cache
def outcome(name: str) -> Outcome:
    return next(survey([name]))


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.survey) for n in ALL]
)
def test_exports_or_is_refused_by_name(name):
    found = outcome(name)
    if found.refusal is None:
        assert found.error is not None
        assert found.magnitude is not None
        assert found.error <= MAX_ERROR
        assert 0.1 < found.magnitude < 100, "an error is only small beside a number"
    else:
        assert any(feature in found.refusal for feature in REFUSALS), found.refusal


def test_the_quick_part_has_every_feature():
    """What the quick part leaves out differs in size alone."""
    found = [outcome(name) for name in QUICK]
    print(score(found))
    specs = [o.spec for o in found if o.exports]
    for attribute, values in {
        "pool": {"cls", "avg", "map"},
        "activation": {"gelu", "quick_gelu", "gelu_tanh", "swiglu", "geglu"},
        "norm_pre": {True, False},
        "layer_scale": {True, False},
        "projection": {True, False},
        "rotary": {True, False},
        "norm2_pre": {True, False},
        "num_prefix_tokens": {0, 1, 5},
    }.items():
        assert {getattr(spec, attribute) for spec in specs} == values, attribute
    refusals = " ".join(o.refusal for o in found if o.refusal)
    assert all(feature in refusals for feature in REFUSALS)


@pytest.mark.survey
def test_score():
    """At least 90 % of open_clip's ViT towers export, and nothing is unexplained.

    Every transformer on patches counts, also what the canonical encoder excludes by design:
    post-norm, norms inside attention, relative positions.
    """
    found = [outcome(name) for name in open_clip_architectures()]
    print("\nopen_clip:", score(found))
    print("timm:", score([outcome(name) for name in timm_architectures()]))
    assert not [o.name for o in found if not o.exports and not o.refusal]
    transformers = [o for o in found if o.pure_vit]
    assert sum(o.exports for o in transformers) >= 0.9 * len(transformers)
