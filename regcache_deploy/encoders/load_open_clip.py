"""`--model NAME` and `--model hf-hub:ORG/NAME`: open_clip's models with their text side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..compat import import_open_clip
from ..errors import ConfigError, ModelError
from .checkpoint import explain, looks_like_path
from .hub import WEIGHT_FILES, explain_failure, require_hub_files
from .model import LoadedModel, random_caution, random_seed, suggest
from .open_clip_timm import from_open_clip_tower
from .structure import build_tower, quiet_root_logger, read_tower
from .zero_shot_head import DEFAULT_TEMPLATES, OpenClipHead, cache_folder, read_templates

HUB = "hf-hub:"


def load_open_clip(
    name: str,
    pretrained: str | None,
    image_size: tuple[int, int] | None = None,
    templates: str = DEFAULT_TEMPLATES,
) -> LoadedModel:
    """Load a CLIP-like model.

    Args:
        name: an architecture of open_clip, or `hf-hub:ORG/NAME`.
        pretrained: a tag, a checkpoint path, or `random[:SEED]`; a hub repository brings its own.
        image_size: another input size; open_clip resamples the position embedding.
        templates: as in `read_templates`.

    Raises:
        ConfigError, ModelError, UnsupportedEncoderError: as in `load_model`.
    """
    open_clip = import_open_clip()
    seed, path, tag = _weights_choice(open_clip, name, pretrained)
    if not name.startswith(HUB):
        read_tower(name, build_tower(name, depth=1))  # refuse before downloading gigabytes
    prompts = read_templates(templates)
    model = _create(open_clip, name, tag, seed, path, image_size)
    config = open_clip.get_model_preprocess_cfg(model)
    scale = getattr(model, "logit_scale", None)
    head = features = None
    # a random text tower classifies at chance, at the price of 80 prompts per class
    if seed is None and hasattr(model, "encode_text"):
        head = OpenClipHead(model, lambda: open_clip.get_tokenizer(name), prompts, cache_folder())
        features = _text_encoder(open_clip, model, name)
    return LoadedModel(
        name=name,
        pretrained=pretrained,
        encoder=from_open_clip_tower(model.visual),
        preprocess={k: list(v) if isinstance(v, tuple) else v for k, v in config.items()},
        text_head=head,
        text_features=features,
        logit_scale=float(scale.detach().exp()) if scale is not None else 100.0,
        caution=random_caution(seed),
    )


def _weights_choice(
    open_clip: Any, name: str, pretrained: str | None
) -> tuple[int | None, Path | None, str | None]:
    """Seed, checkpoint, or tag; for a hub repository all None."""
    if name.startswith(HUB):
        if pretrained is not None:
            raise ConfigError(f"{name} brings its own weights; leave --pretrained out")
        if name.count("/") != 1:
            raise ModelError(f"'{name}' is no hub repository; write {HUB}ORG/NAME")
        return None, None, None
    known = open_clip.list_models()
    if name not in known:
        raise ModelError(f"unknown model '{name}'{suggest(name, ['demo', *known])}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is None:
        raise ConfigError(
            f"--model {name} needs --pretrained: a tag ({', '.join(tags) or 'none known'}), "
            "a checkpoint path, or random[:SEED]"
        )
    seed = random_seed(pretrained)
    if seed is not None:
        return seed, None, None
    if looks_like_path(pretrained):
        if not Path(pretrained).is_file():
            raise ModelError(f"no checkpoint file at {pretrained}")
        return None, Path(pretrained), None
    if pretrained not in tags:
        raise ModelError(f"{name} has no pretrained tag '{pretrained}'{suggest(pretrained, tags)}")
    return None, None, pretrained


def _create(
    open_clip: Any,
    name: str,
    tag: str | None,
    seed: int | None,
    path: Path | None,
    size: tuple[int, int] | None,
) -> Any:
    what, instead = f"the weights '{tag}' of {name}", "--pretrained PATH"
    if name.startswith(HUB):
        what, instead = f"the files of {name}", "--model NAME --pretrained PATH"
        require_hub_files(what, name.removeprefix(HUB), WEIGHT_FILES, instead)
    elif tag is not None:
        repository = open_clip.get_pretrained_cfg(name, tag).get("hf_hub", "").strip("/")
        if repository.count("/") == 1:
            require_hub_files(what, repository, WEIGHT_FILES, instead)
    try:
        with torch.random.fork_rng(devices=[]), quiet_root_logger():
            torch.manual_seed(seed or 0)
            model = open_clip.create_model(
                name,
                pretrained=tag,
                precision="fp32",
                pretrained_text=False,
                force_image_size=size,
            )
    except Exception as error:  # the network, the hub, a tokenizer's library, the file
        raise explain_failure(what, error, instead) from error
    if path is not None:
        _load_checkpoint(model, path)
    return model.eval()


def _load_checkpoint(model: Any, path: Path) -> None:
    """Whole models; a checkpoint of the image tower alone cannot classify and is refused."""
    from open_clip.factory import load_checkpoint

    try:
        load_checkpoint(model, str(path), strict=True, weights_only=True)
    except Exception as error:  # torch, safetensors and pickle each raise their own kinds
        raise ModelError(f"{path} does not fit or cannot be read: {explain(error)}") from error


def _text_encoder(open_clip: Any, model: Any, name: str) -> Any:
    """Texts -> features `[n, E]`, not normalized."""

    @torch.no_grad()
    def encode(texts: Sequence[str]) -> Tensor:
        out: Tensor = model.encode_text(open_clip.get_tokenizer(name)(list(texts))).float()
        return out

    return encode
