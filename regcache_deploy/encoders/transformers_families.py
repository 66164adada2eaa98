"""Which of transformers' models fit the canonical encoder, and what reads each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from regcache_export.spec import EncoderSpec

from ..errors import ModelError, UnsupportedEncoderError
from . import transformers_clip as clip
from . import transformers_dino as dino
from . import transformers_preprocess as preprocess
from .parameters import Parameters
from .reading import Weights
from .transformers_config import Fields

SpecOf = Callable[[Fields, tuple[int, int], "int | None"], EncoderSpec]
WeightsOf = Callable[[Parameters, EncoderSpec, Fields], Weights]


@dataclass(frozen=True)
class Family:
    """One kind of image tower.

    Attributes:
        defaults: of its configuration class, for the fields that decide the structure.
        preprocess: defaults of its image processor.
        spec, weights: what reads it.
        any_size: the model takes images of any size, so the processor's size is the input's, not
            that of the position embedding.
        two_towers: `model_type`s of whole models, whose configuration has this one inside.
    """

    defaults: Mapping[str, Any]
    preprocess: Mapping[str, Any]
    spec: SpecOf
    weights: WeightsOf
    any_size: bool = False
    two_towers: tuple[str, ...] = ()


CLIP = Family(
    clip.CLIP_DEFAULTS,
    preprocess.CLIP,
    clip.clip_spec,
    clip.clip_weights,
    two_towers=("clip", "metaclip_2"),
)
SIGLIP = Family(
    clip.SIGLIP_DEFAULTS,
    preprocess.SIGLIP,
    clip.siglip_spec,
    clip.siglip_weights,
    two_towers=("siglip",),
)
FAMILIES = {
    "clip": CLIP,
    "clip_vision_model": CLIP,
    # its image tower is CLIP's
    "metaclip_2": CLIP,
    "metaclip_2_vision_model": CLIP,
    "siglip": SIGLIP,
    "siglip_vision_model": SIGLIP,
    "dinov2": Family(
        dino.DINOV2_DEFAULTS, preprocess.DINOV2, dino.dinov2_spec, dino.dinov2_weights, True
    ),
    "dinov2_with_registers": Family(
        dino.DINOV2_REGISTERS_DEFAULTS,
        preprocess.DINOV2,
        dino.dinov2_registers_spec,
        dino.dinov2_weights,
        True,
    ),
    "dinov3_vit": Family(
        dino.DINOV3_DEFAULTS, preprocess.DINOV3, dino.dinov3_spec, dino.dinov3_weights, True
    ),
}
"""By `model_type`."""

REFUSED = {
    "siglip2": "images of varying shape (NaFlex)",
    "siglip2_vision_model": "images of varying shape (NaFlex)",
    "dinov3_convnext": "a convolutional network",
    "convnext": "a convolutional network",
    "convnextv2": "a convolutional network",
    "resnet": "a convolutional network",
    "swin": "window attention",
    "swinv2": "window attention",
    "beit": "a relative position bias in attention",
}


def family_of(config: Mapping[str, Any], where: str) -> tuple[Family, Fields, int | None]:
    """The family, the fields of the image tower, and the length of its projected embedding.

    Raises:
        ModelError: the file does not say what it is.
        UnsupportedEncoderError: the canonical encoder lacks what it is.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise ModelError(f"{where} names no model_type; is it one of transformers'?")
    if kind in REFUSED:
        raise UnsupportedEncoderError(f"{REFUSED[kind]} is not supported: {where} is of '{kind}'")
    family = FAMILIES.get(kind)
    if family is None:
        raise UnsupportedEncoderError(
            f"{where} is of transformers' kind '{kind}'; read are {', '.join(FAMILIES)}"
        )
    values = config
    if kind in family.two_towers:
        # older releases wrote both, and transformers takes the former, defaults and all
        values = config.get("vision_config_dict") or config.get("vision_config") or {}
        if not isinstance(values, Mapping):
            raise ModelError(f"{where}: vision_config is no JSON object")
    fields = Fields(values, family.defaults, where)
    if fields.count("num_channels") != 3:
        raise UnsupportedEncoderError(f"{fields.count('num_channels')} colour channels")
    return family, fields, _projection(config, family, fields)


def _projection(config: Mapping[str, Any], family: Family, fields: Fields) -> int | None:
    if family is not CLIP:
        return None
    if config["model_type"] in CLIP.two_towers:
        # the whole model's, which the image tower's field need not repeat
        return Fields(config, CLIP.defaults, fields.where).count("projection_dim")
    classes = config.get("architectures") or ()
    projected = any(str(name).endswith("VisionModelWithProjection") for name in classes)
    return fields.count("projection_dim") if projected else None
