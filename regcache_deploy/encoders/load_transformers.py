"""`--model ORG/NAME` and `--model FOLDER` in the layout of the library transformers.

Its files are read by our own maps of names; the library itself is not needed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regcache_export.spec import EncoderSpec

from ..errors import ConfigError, ModelError
from .canonical import Encoder
from .checkpoint import read_state_dict
from .model import LoadedModel, random_caution
from .model_files import ModelFiles, read_json
from .names import random_seed
from .parameters import Parameters
from .reading import Weights, contiguous
from .source import CONFIG
from .text_side import CanonicalText, TextSide
from .transformers_config import Fields
from .transformers_dino import dinov3_angles
from .transformers_families import Family, family_of
from .transformers_preprocess import Preprocessing
from .transformers_text import has_tokenizer, read_text, read_tokenizer
from .transformers_weights import read_weights
from .zero_shot_head import DEFAULT_TEMPLATES, OpenClipHead, cache_folder, read_templates

PROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""Of an image processor alone; of all that a model needs, since transformers 5."""

OTHER_TOWER = r"(?:.*\.)?(?:text_model\.|text_projection\.|logit_bias$|.*position_ids$)"
CLASSIFIER = r"(?:classifier|head)\.(?:weight|bias)$"

log = logging.getLogger(__name__)


def load_transformers(
    name: str,
    files: ModelFiles,
    pretrained: str | None,
    image_size: tuple[int, int] | None = None,
    weights: tuple[dict[str, Tensor], str] | None = None,
    templates: str = DEFAULT_TEMPLATES,
) -> LoadedModel:
    """Load the image tower of a model, and the text tower of a whole one.

    Args:
        name: as the user gave it.
        files: where its `config.json` lies.
        pretrained: None for the model's own weights, a checkpoint of the same structure, or
            `random[:SEED]`.
        image_size: another input size; the position embedding is resampled.
        weights: in place of those in `files`: tensors by name, and the file that they are of.
        templates: as in `read_templates`; for a model with a text tower.

    Raises:
        ConfigError, ModelError, UnsupportedEncoderError: as in `load_model`.
    """
    path = files.find(CONFIG)
    if path is None:
        raise ModelError(f"{files.absence(CONFIG)}: it is no model in transformers' layout")
    configuration = read_json(path)
    family, fields, projection = family_of(configuration, str(path))
    preprocessing = _preprocessing(files, family)
    size = image_size or _image_size(family, fields, preprocessing)
    spec = family.spec(fields, size, projection)
    if min(spec.grid) < 1:
        raise ConfigError(f"an image of {size} holds no patch of {spec.patch_size}")
    if problem := spec.size_problem():
        raise ModelError(f"{path} has {problem}")
    seed, scale, text = random_seed(pretrained), 100.0, None
    whole = family.two_towers and weights is None
    if seed is not None:
        canonical = _random_weights(spec, fields, seed)
    else:
        if pretrained is not None:
            weights = read_state_dict(Path(pretrained)), pretrained
        parameters = Parameters(*(weights or read_weights(files)))
        canonical = _weights(family, parameters, spec, fields)
        if parameters.has("logit_scale"):
            found = parameters.take(parameters.prefix(("logit_scale",)) + "logit_scale")
            scale = float(found.exp())
        if whole:
            text = _text_side(name, files, configuration, parameters, scale, templates)
        _account(parameters)
    _say_what_is_missing(fields, preprocessing)
    if text is None and templates != DEFAULT_TEMPLATES:
        raise ConfigError(f"--templates: no text tower of {name} is read")
    return LoadedModel(
        name=name,
        pretrained=pretrained,
        encoder=Encoder(spec, contiguous(canonical)),
        preprocess=preprocessing.config(size),
        text_head=text.head if text is not None else None,
        text_features=text.side.features if text is not None else None,
        text=text.side if text is not None else None,
        logit_scale=scale,
        caution=random_caution(seed),
    )


@dataclass(frozen=True)
class _Text:
    side: TextSide
    head: OpenClipHead


def _text_side(
    name: str,
    files: ModelFiles,
    configuration: Mapping[str, Any],
    parameters: Parameters,
    scale: float,
    templates: str,
) -> _Text | None:
    """The text side of a whole model, or None, with a warning, where there is none to use."""
    found = read_text(configuration, parameters, CONFIG)
    lacking = None if found is not None else "its weights hold no text tower"
    if found is not None and not has_tokenizer(files):
        lacking = files.absence("tokenizer.json")
    if found is None or lacking is not None:
        log.warning("%s: no text side, so no zero-shot head from class names: %s", name, lacking)
        return None
    encoder, fields = found
    if fields.defaulted:
        _say_defaults(fields.where, fields.defaulted)
    text = CanonicalText(encoder, lambda: read_tokenizer(files, encoder, fields))
    bias = None
    if parameters.has("logit_bias"):
        bias = float(parameters.take(parameters.prefix(("logit_bias",)) + "logit_bias"))
    prompts = read_templates(templates)
    side = TextSide(
        read_encoder=lambda: encoder,
        read_tokenizer=lambda: text.tokenizer,
        features=text.features,
        tokens=text.tokens,
        templates=prompts,
        logit_scale=scale,
        logit_bias=bias,
    )
    return _Text(side, OpenClipHead(text, lambda: text.tokens, prompts, cache_folder()))


def _preprocessing(files: ModelFiles, family: Family) -> Preprocessing:
    for name in PROCESSORS:
        path = files.find(name)
        if path is not None:
            values = read_json(path)
            values = values.get("image_processor", values)
            return Preprocessing(values, family.preprocess, str(path))
    return Preprocessing({}, family.preprocess, files.absence(PROCESSORS[0]))


def _image_size(family: Family, fields: Fields, preprocessing: Preprocessing) -> tuple[int, int]:
    told = "size" not in preprocessing.defaulted
    if family.any_size and told:
        return preprocessing.size
    size = fields.pair("image_size")
    if told and preprocessing.size != size:
        log.warning(
            "%s makes images of %dx%d, and the position embedding is for %dx%d, which is taken",
            preprocessing.where,
            *preprocessing.size,
            *size,
        )
    return size


def _weights(family: Family, parameters: Parameters, spec: EncoderSpec, fields: Fields) -> Weights:
    try:
        return family.weights(parameters, spec, fields)
    except (RuntimeError, IndexError) as error:  # shapes that do not go together
        raise ModelError(f"{parameters.where} does not fit: {error}") from error


def _account(parameters: Parameters) -> None:
    """Every parameter was read, or is named here as left out."""
    other = parameters.leave_out(OTHER_TOWER)
    if other:
        log.info("%s: %d parameters of the text side left out", parameters.where, len(other))
    classifier = parameters.leave_out(CLASSIFIER)
    if classifier:
        log.warning("%s: left out is the classifier (%s)", parameters.where, ", ".join(classifier))
    parameters.finish()


def _say_what_is_missing(fields: Fields, preprocessing: Preprocessing) -> None:
    for where, found in (
        (fields.where, fields.defaulted),
        (preprocessing.where, preprocessing.defaulted),
    ):
        if found:
            _say_defaults(where, found)


def _say_defaults(where: str, found: Mapping[str, Any]) -> None:
    told = ", ".join(f"{name} {value}" for name, value in sorted(found.items()))
    log.warning("%s: taken are the defaults of transformers' class: %s", where, told)


def _random_weights(spec: EncoderSpec, fields: Fields, seed: int) -> Weights:
    """Weights of a sensible size; norms near one."""
    generator = torch.Generator().manual_seed(seed)
    out: dict[str, Any] = {}
    for weight, shape in spec.weight_shapes().items():
        spread = 0.1 if len(shape) < 2 else torch.Size(shape[1:]).numel() ** -0.5
        value: Tensor = torch.randn(shape, generator=generator) * spread
        module = weight.rpartition(".")[0]
        is_scale = weight.endswith(".weight") and module.rpartition(".")[2].startswith("norm")
        out[weight] = value + 1 if is_scale else value
    if spec.rotary:
        out["rotary"] = dinov3_angles(spec, fields.number("rope_theta"))
    return out
