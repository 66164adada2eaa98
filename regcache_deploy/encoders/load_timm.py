"""`--model timm/NAME`: encoders without a text side, with their classifier where asked for."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..compat import import_open_clip, require
from ..errors import ConfigError, ModelError
from .checkpoint import below_attribute, explain, read_state_dict
from .classifier_head import imagenet_classifier
from .hub import TIMM_WEIGHT_FILES, explain_failure, require_hub_files
from .model import LoadedModel, random_caution
from .names import TIMM, looks_like_path, missing_file, random_seed, suggest, unknown_tag
from .size_warnings import warn_of_resampled_positions
from .timm_vit import from_timm

log = logging.getLogger(__name__)


def load_timm(
    name: str,
    pretrained: str | None,
    image_size: tuple[int, int] | None = None,
    classifier: bool = False,
) -> LoadedModel:
    """Load an image encoder of timm, without its classifier unless that is asked for.

    Args:
        name: `timm/NAME` or `timm/NAME.TAG`.
        pretrained: a tag of timm, a checkpoint path, `TAG=PATH` for a tag's weights in a file, or
            `random[:SEED]`; None takes the tag in the name, or timm's default one.
        image_size: another input size; timm resamples the position embedding.
        classifier: keep the classifier: features are its logits, and the head is their axes.

    Raises:
        ConfigError, ModelError, UnsupportedEncoderError: as in `load_model`.
    """
    import_open_clip()
    timm = require("timm", "search")
    architecture, tag, path = timm_choice(timm, name, pretrained)
    seed = random_seed(pretrained)
    full = f"{architecture}.{tag}" if tag else architecture
    model = _create(timm, full, seed, path, image_size, classifier)
    encoder = from_timm(model)
    if image_size is not None and seed is None:
        known = tuple(model.pretrained_cfg["input_size"][1:])  # type: ignore[index]
        warn_of_resampled_positions(name, known, image_size)
    head = imagenet_classifier(name, _outputs(model)) if classifier else None
    return LoadedModel(
        name=name,
        pretrained=pretrained,
        encoder=encoder,
        preprocess=_preprocess(timm, model, encoder.spec.image_size),
        text_head=head,
        caution=random_caution(seed),
    )


def _outputs(model: Any) -> int:
    """Classes of the classifier; 0 without one."""
    return model.head.out_features if isinstance(model.head, nn.Linear) else 0


def timm_choice(timm: Any, name: str, pretrained: str | None) -> tuple[str, str, Path | None]:
    """Architecture, tag (may be empty) and file that are asked for; nothing is downloaded.

    Raises:
        ConfigError, ModelError: as in `load_model`, but for what only the weights can say.
    """
    architecture, _, tag = name.removeprefix(TIMM).partition(".")
    if not timm.is_model(architecture):
        raise ModelError(f"unknown model '{name}'{suggest(architecture, timm.list_models())}")
    path = None
    if pretrained and random_seed(pretrained) is None:
        named, separator, file = pretrained.partition("=")
        if separator and named in _tags(timm, architecture):
            if tag and tag != named:
                raise ConfigError(f"{name} names one tag and --pretrained {pretrained} another")
            tag, path = named, Path(file)
        elif looks_like_path(pretrained):
            path = Path(pretrained)
        elif tag and tag != pretrained:
            raise ConfigError(f"{name} names one tag and --pretrained {pretrained} another")
        else:
            tag = pretrained
    _check_tag(timm, architecture, tag)
    if path is not None and not path.is_file():
        raise missing_file(architecture, pretrained or "", path, _tags(timm, architecture))
    return architecture, tag, path


def _tags(timm: Any, architecture: str) -> list[str]:
    return [n.partition(".")[2] for n in timm.list_pretrained(f"{architecture}.*")]


def _check_tag(timm: Any, architecture: str, tag: str) -> None:
    known = _tags(timm, architecture)
    if tag and tag not in known:
        raise unknown_tag(architecture, tag, known)


def _create(
    timm: Any,
    name: str,
    seed: int | None,
    path: Path | None,
    size: tuple[int, int] | None,
    classifier: bool,
) -> nn.Module:
    keywords: dict[str, Any] = {} if classifier else {"num_classes": 0}
    keywords |= {"img_size": size} if size else {}
    download = seed is None and path is None
    if download:
        cfg = timm.get_pretrained_cfg(name)
        if cfg is None or not (cfg.hf_hub_id or cfg.url):
            raise ModelError(
                f"timm knows no weights for {name}; pass --pretrained TAG, PATH or random[:SEED]"
            )
        if cfg.hf_hub_id:
            repository = cfg.hf_hub_id
            repository += (
                cfg.architecture + (f".{cfg.tag}" if cfg.tag else "")
                if (repository.endswith("/"))
                else ""
            )
            require_hub_files(
                f"the weights of {name}", repository, TIMM_WEIGHT_FILES, "--pretrained PATH"
            )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed or 0)
            model: nn.Module = timm.create_model(name, pretrained=download, **keywords)
    except (RuntimeError, TypeError) as error:
        if not download:
            raise ModelError(f"{name} cannot be built: {explain(error)}") from error
        raise explain_failure(f"the weights of {name}", error, "--pretrained PATH") from error
    except Exception as error:  # the network, the hub, the file
        raise explain_failure(f"the weights of {name}", error, "--pretrained PATH") from error
    if path is not None:
        _load(model, path, classifier)
        if "." not in name and (tags := _tags(timm, name)):
            log.warning(
                "%s does not say how its images were normalized: they are as for %s; where it is "
                "another kind, pass --pretrained TAG=PATH (tags: %s)",
                path,
                model.pretrained_cfg["tag"],  # type: ignore[index]
                ", ".join(tags),
            )
    return model.eval()


def _load(model: Any, path: Path, classifier: bool) -> None:
    """Load a local checkpoint; all of it must fit, but for a classifier that is not wanted."""
    from timm.models.vision_transformer import checkpoint_filter_fn

    state = below_attribute(read_state_dict(path), set(model.state_dict()))
    try:
        converted = checkpoint_filter_fn(state, model) if hasattr(model, "pos_embed") else state
        if not classifier:
            heads = ("head.", "head_dist.")
            converted = {k: v for k, v in converted.items() if not k.startswith(heads)}
        model.load_state_dict(converted, strict=True)
    except Exception as error:  # the converter indexes what it expects to find
        raise ModelError(f"{path} does not fit or cannot be read: {explain(error)}") from error


def _preprocess(timm: Any, model: Any, image_size: tuple[int, int]) -> dict[str, Any]:
    """The evaluation transform in open_clip's layout, plus timm's `crop_pct` and `crop_mode`.

    timm resizes to `size / crop_pct` and cuts the centre out; open_clip has no word for that.
    """
    config = timm.data.resolve_model_data_config(model)
    return {
        "size": list(image_size),  # the model's, which its configuration need not name
        "mode": "RGB",
        "mean": list(config["mean"]),
        "std": list(config["std"]),
        "interpolation": config["interpolation"],
        "resize_mode": {"center": "shortest", "squash": "squash", "border": "longest"}[
            config["crop_mode"]
        ],
        "fill_color": 0,
        "crop_pct": float(config["crop_pct"]),
        "crop_mode": config["crop_mode"],
    }
