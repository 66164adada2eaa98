"""Which architectures export, tried out: true structure, few blocks, random weights.

Each architecture is built with its depth cut, filled with random weights, exported to ONNX, and
held against the original PyTorch module in ONNX Runtime, all in FP32.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regcache_engines.onnxruntime_engine import OnnxRuntimeEngine
from regcache_export.graph import build_model, serialize

from ..compat import import_open_clip
from ..encoders.canonical import Encoder
from ..encoders.names import TIMM
from ..encoders.structure import build_tower, fill_randomly, read_tower
from ..errors import ModelError, UnsupportedEncoderError

SURVEY_DEPTH = 3
MAX_ERROR = 1e-4
"""Largest absolute difference of an embedding that counts as the same."""

TIMM_FAMILIES: dict[str, tuple[str, ...]] = {
    "DINOv2": tuple(f"vit_{size}_patch14_dinov2" for size in ("small", "base", "large", "giant")),
    "DINOv2 with registers": tuple(
        f"vit_{size}_patch14_reg4_dinov2" for size in ("small", "base", "large", "giant")
    ),
    "DINOv3": tuple(f"vit_{size}_patch16_dinov3" for size in ("small", "base", "large")),
    "DeiT": (
        *(f"deit_{size}_patch16_224" for size in ("tiny", "small", "base")),
        "deit_base_patch16_384",
        *(f"deit_{size}_distilled_patch16_224" for size in ("tiny", "small", "base")),
        *(f"deit3_{size}_patch16_224" for size in ("small", "medium", "base", "large")),
        "deit3_huge_patch14_224",
    ),
    "AugReg": (
        *(f"vit_{size}_patch16_224" for size in ("tiny", "small", "base", "large")),
        *(f"vit_{size}_patch16_384" for size in ("tiny", "small", "base", "large")),
        *(f"vit_{size}_patch32_224" for size in ("small", "base")),
        "vit_base_patch8_224",
    ),
    "SigLIP": (
        *(f"vit_base_patch16_siglip_{size}" for size in (224, 256, 384, 512)),
        *(f"vit_large_patch16_siglip_{size}" for size in (256, 384, 512)),
        *(f"vit_so400m_patch14_siglip_{size}" for size in (224, 378, 384)),
        *(f"vit_so400m_patch16_siglip_{size}" for size in (256, 384, 512)),
        "vit_base_patch32_siglip_256",
        "vit_base_patch16_siglip_gap_224",
        "vit_so400m_patch14_siglip_gap_224",
        "vit_giantopt_patch16_siglip_256",
    ),
    "CLIP trunks": (
        "vit_base_patch16_clip_224",
        "vit_base_patch32_clip_quickgelu_224",
        "vit_large_patch14_clip_336",
        "vit_huge_patch14_clip_224",
    ),
}
"""timm's families that the project supports, with the members it does not."""

TRANSFORMERS = ("VisionTransformer", "Eva", "VisionTransformerRelPos")
"""Tower classes that are transformers on patches from the first to the last layer."""


@dataclass(frozen=True)
class Outcome:
    """What happened to one architecture.

    Attributes:
        name: as `--model` takes it.
        tower: class of the image tower.
        pure_vit: a transformer on patches, without a convolutional stem, whatever is inside.
        error: largest absolute difference of the embedding, or None where it was refused.
        magnitude: largest absolute value of the embedding, for scale.
        refusal: the typed error's message, or None where it exports.
        spec: its structure, with the depth of the survey; None where it was refused.
    """

    name: str
    tower: str
    pure_vit: bool
    error: float | None = None
    magnitude: float | None = None
    refusal: str | None = None
    spec: Any = None

    @property
    def exports(self) -> bool:
        return self.error is not None and self.error <= MAX_ERROR


def open_clip_architectures() -> list[str]:
    """Every architecture that the installed open_clip lists."""
    return list(import_open_clip().list_models())


def timm_architectures() -> list[str]:
    """The members of `TIMM_FAMILIES`, as `--model` takes them."""
    return [TIMM + name for names in TIMM_FAMILIES.values() for name in names]


def survey(names: Iterable[str], depth: int = SURVEY_DEPTH) -> Iterator[Outcome]:
    """Examine architectures one after the other; equal configurations are computed once."""
    known: dict[str, Outcome] = {}
    for name in names:
        key = _configuration(name)
        if key not in known:
            known[key] = examine(name, depth)
        yield replace(known[key], name=name)


def examine(name: str, depth: int = SURVEY_DEPTH) -> Outcome:
    """Export one architecture and compare, or note why it is refused.

    Raises:
        ModelError: the library cannot build it; that is neither outcome.
    """
    tower = build_tower(name, depth)
    kind, pure = describe_tower(tower)
    try:
        read_tower(name, tower)
    except UnsupportedEncoderError as error:
        return Outcome(name, kind, pure, refusal=str(error))
    tower = fill_randomly(tower)
    encoder = read_tower(name, tower)
    difference, magnitude = export_error(encoder, tower)
    return Outcome(name, kind, pure, difference, magnitude, spec=encoder.spec)


def describe_tower(tower: nn.Module) -> tuple[str, bool]:
    """Class of a tower, and whether it is a transformer without a convolutional stem."""
    trunk: Any = getattr(tower, "trunk", tower)
    stem = type(getattr(trunk, "patch_embed", None)).__name__
    return type(trunk).__name__, type(trunk).__name__ in TRANSFORMERS and stem != "HybridEmbed"


@torch.no_grad()
def export_error(encoder: Encoder, tower: nn.Module, seed: int = 1) -> tuple[float, float]:
    """The original module against the graph in ONNX Runtime on random images.

    Returns:
        Largest absolute difference of the embedding, and its largest absolute value.
    """
    from ..quantization.plan import make_plan
    from ..quantization.simulate import Calibration, Quantization

    generator = torch.Generator().manual_seed(seed)
    batch = 2 if encoder.spec.num_tokens <= 300 else 1
    images = torch.randn(batch, 3, *encoder.spec.image_size, generator=generator)
    want = _embedding(tower(images))
    plan = make_plan(Calibration(encoder, Quantization()), provenance={"model": "survey"})
    with tempfile.TemporaryDirectory(prefix="regcache-survey-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(serialize(build_model(plan)))
        del plan
        with OnnxRuntimeEngine(path, threads=1) as engine:
            got = torch.from_numpy(engine.infer(images.numpy()))
    return float((got - want).abs().max()), float(want.abs().max())


def score(outcomes: Sequence[Outcome]) -> str:
    """The result in one line."""
    exported = [o for o in outcomes if o.exports]
    refused = [o for o in outcomes if o.refusal]
    pure = [o for o in outcomes if o.pure_vit]
    share = sum(o.exports for o in pure) / len(pure) if pure else 0.0
    worst = max((o.error for o in exported if o.error is not None), default=0.0)
    return (
        f"{len(exported)} of {len(outcomes)} export (largest error {worst:.1e}), {len(refused)} "
        f"are refused by a named feature, {len(outcomes) - len(exported) - len(refused)} fail; "
        f"of the {len(pure)} towers that are transformers on patches, {share:.1%} export"
    )


def _embedding(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """CoCa's tower returns its tokens, too."""
    return output[0] if isinstance(output, tuple) else output


def _configuration(name: str) -> str:
    """Equal for names that build the same image tower."""
    if name.startswith(TIMM):
        return name
    config = import_open_clip().get_model_config(name)
    if config is None:
        raise ModelError(f"open_clip has no architecture '{name}'")
    vision = {k: v for k, v in config["vision_cfg"].items() if k != "timm_model_pretrained"}
    return json.dumps([config["embed_dim"], vision, config.get("quick_gelu", False)])
