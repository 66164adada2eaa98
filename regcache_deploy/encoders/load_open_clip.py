"""Models of open_clip with their text side: by name, from its hub repositories, from folders."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..compat import import_open_clip
from ..errors import ConfigError, ModelError
from .hub import WEIGHT_FILES, explain_failure, first_line, require_hub_files
from .model import LoadedModel, random_caution
from .names import check_tag, random_seed, tag_and_path, unknown_model
from .open_clip_checkpoint import load_checkpoint
from .open_clip_image import WITHOUT_TEXT, foreign_text_tower, weights_file
from .open_clip_timm import from_open_clip_tower
from .roberta_text import from_roberta
from .size_warnings import warn_of_resampled_positions
from .source import HUB, LOCAL, Source
from .structure import build_tower, quiet_root_logger, read_tower
from .text_encoder import from_open_clip_text
from .text_side import TextSide
from .text_tokenizer import from_open_clip_tokenizer
from .zero_shot_head import (
    DEFAULT_TEMPLATES,
    OpenClipHead,
    cache_folder,
    load_tokenizer,
    read_templates,
)

FOREIGN = "HFTextEncoder"
"""open_clip's class of text towers of transformers."""

PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")

log = logging.getLogger(__name__)


def load_open_clip(
    name: str,
    pretrained: str | None,
    image_size: tuple[int, int] | None = None,
    templates: str = DEFAULT_TEMPLATES,
    source: Source | None = None,
) -> LoadedModel:
    """Load a CLIP-like model.

    Args:
        name: an architecture of open_clip, or what the user named `source` by.
        pretrained: a tag, a checkpoint path, `TAG=PATH` for a tag's weights in a file, or
            `random[:SEED]`; a hub repository and a folder bring their own.
        image_size: another input size; open_clip resamples the position embedding.
        templates: as in `read_templates`.
        source: a repository or a folder in open_clip's layout.

    Raises:
        ConfigError, ModelError, UnsupportedEncoderError: as in `load_model`.
    """
    open_clip = import_open_clip()
    own = source.open_clip if source is not None else None
    weights = _Weights() if own else weights_choice(open_clip, name, pretrained)
    if not own:
        read_tower(name, build_tower(name, depth=1))  # refuse before downloading gigabytes
    prompts = read_templates(templates)
    model, alone = _model(open_clip, own or name, weights, image_size, source)
    config = open_clip.get_model_preprocess_cfg(model)
    scale = getattr(model, "logit_scale", None)
    head = features = text = None
    # a random text tower classifies at chance, at the price of 80 prompts per class
    if weights.seed is None and not alone and hasattr(model, "encode_text"):
        tokenizer = partial(open_clip.get_tokenizer, own or name)
        head = OpenClipHead(model, tokenizer, prompts, cache_folder())
        features = _text_encoder(model, tokenizer)
    factor = float(scale.detach().exp()) if scale is not None and not alone else 100.0
    if not alone and hasattr(model, "encode_text"):
        text = _text_side(open_clip, model, own or name, prompts, factor)
    return LoadedModel(
        name=name,
        pretrained=pretrained,
        encoder=from_open_clip_tower(model.visual),
        preprocess={k: list(v) if isinstance(v, tuple) else v for k, v in config.items()},
        text_head=head,
        text_features=features,
        text=text,
        logit_scale=factor,
        caution=random_caution(weights.seed),
    )


@dataclass(frozen=True)
class _Weights:
    """Where weights come from; for a hub repository and a folder nothing is set.

    Attributes:
        seed: of random ones.
        tag: of open_clip's list, which says how they were trained.
        path: of a checkpoint; with a tag, that one's.
    """

    seed: int | None = None
    tag: str | None = None
    path: Path | None = None


def weights_choice(open_clip: Any, name: str, pretrained: str | None) -> _Weights:
    """What `--pretrained` asks for, where `name` is an architecture; nothing is downloaded.

    Raises:
        ConfigError, ModelError: as in `load_model`, but for what only the weights can say.
    """
    known = open_clip.list_models()
    if name not in known:
        raise unknown_model(name, known)
    tags = open_clip.list_pretrained_tags_by_model(name)
    check_tag(name, pretrained, tags)
    seed = random_seed(pretrained)
    if pretrained is None or seed is not None:
        return _Weights(seed)
    tag, path = tag_and_path(pretrained, tags)
    if tag is None:
        _warn_of_unknown_training(open_clip, name, tags)
    return _Weights(None, tag, path)


def _warn_of_unknown_training(open_clip: Any, name: str, tags: Sequence[str]) -> None:
    """A bare file does not say which activation and which preprocessing it was trained with."""
    own = quick_gelu_of(open_clip, name)
    other = [
        tag for tag in tags if _trained_otherwise(open_clip.get_pretrained_cfg(name, tag), own)
    ]
    if other:
        log.warning(
            "--pretrained PATH: the file does not say how it was trained; taken are %s and "
            "open_clip's default preprocessing. Some weights of %s need others (%s): for those "
            "write TAG=PATH",
            "QuickGELU" if own else "GELU",
            name,
            ", ".join(other[:4]),
        )


def quick_gelu_of(open_clip: Any, name: str) -> bool:
    """Whether an architecture has QuickGELU by itself."""
    return bool((open_clip.get_model_config(name) or {}).get("quick_gelu"))


def _trained_otherwise(config: Mapping[str, Any], quick_gelu: bool) -> bool:
    from open_clip.transform import PreprocessCfg

    default = asdict(PreprocessCfg())
    own = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
    same = all(own.get(key, default[key]) == default[key] for key in PREPROCESSING)
    return bool(config.get("quick_gelu")) != quick_gelu or not same


def _model(
    open_clip: Any,
    name: str,
    weights: _Weights,
    size: tuple[int, int] | None,
    source: Source | None,
) -> tuple[Any, bool]:
    """The model, and whether its image tower alone has weights."""
    foreign = foreign_text_tower(open_clip, name, source if name.startswith((HUB, LOCAL)) else None)
    try:
        model = _create(open_clip, name, weights, size)
    except ModelError as error:
        if foreign is None:
            raise
        model = _create(open_clip, name, weights, size, source=source, text=False)
        log.warning(
            "the text tower of %s is %s of transformers, and it could not be built (%s): the image "
            "tower is taken alone, so there is no zero-shot head from class names and no text/",
            name,
            foreign,
            first_line(error.__cause__ if isinstance(error.__cause__, Exception) else error),
        )
        return model, True
    if weights.path is None or load_checkpoint(model, weights.path):
        return model, False
    log.warning(
        "%s holds the image tower alone, so there is no zero-shot head from class names",
        weights.path,
    )
    return model, True


def _create(
    open_clip: Any,
    name: str,
    weights: _Weights,
    size: tuple[int, int] | None,
    source: Source | None = None,
    text: bool = True,
) -> Any:
    """A model with the weights of its tag or source; without `text` also with those of a path."""
    tag, path = weights.tag, weights.path
    what = f"the weights '{tag or path or 'random'}' of {name}"
    instead = f"--pretrained {tag}=PATH" if tag else "--pretrained PATH"
    trained: Mapping[str, Any] = {}
    if tag is not None:
        trained = open_clip.get_pretrained_cfg(name, tag)
        if quick_gelu_of(open_clip, name) and not trained.get("quick_gelu"):
            raise ConfigError(
                f"{what} were trained with GELU, and this architecture has QuickGELU; take "
                f"--model {name.removesuffix('-quickgelu')}"
            )
    if name.startswith(HUB):
        what, instead = f"the files of {name}", "--model NAME --pretrained PATH"
        require_hub_files(what, name.removeprefix(HUB), WEIGHT_FILES, instead)
    elif tag is not None and path is None:
        repository = trained.get("hf_hub", "").strip("/")
        if repository.count("/") == 1:
            require_hub_files(what, repository, WEIGHT_FILES, instead)
    if size is not None and path is None and weights.seed is None:
        own = (open_clip.get_model_config(name) or {}).get("vision_cfg", {}).get("image_size")
        if own is not None:
            height, width = (own, own) if isinstance(own, int) else own
            warn_of_resampled_positions(name, (height, width), size)
    try:
        with torch.random.fork_rng(devices=[]), quiet_root_logger():
            torch.manual_seed(weights.seed or 0)
            model = open_clip.create_model(
                name,
                pretrained=tag if path is None and text else None,
                precision="fp32",
                # open_clip takes it from the architecture alone, and only warns
                force_quick_gelu=bool(trained.get("quick_gelu")),
                force_preprocess_cfg={k: trained[k] for k in PREPROCESSING if k in trained},
                pretrained_text=False,
                force_image_size=size,
                **({} if text else WITHOUT_TEXT),
            )
            if not text:
                path = path or weights_file(open_clip, name, tag, source)
    except ModelError:
        raise
    except Exception as error:  # the network, the hub, a tokenizer's library, the file
        raise explain_failure(what, error, instead) from error
    if not text and path is not None:
        load_checkpoint(model, path, image_alone=True)
    return model.eval()


def _text_side(
    open_clip: Any, model: Any, name: str, prompts: tuple[str, ...], scale: float
) -> TextSide:
    tokenizer = cache(lambda: load_tokenizer(partial(open_clip.get_tokenizer, name)))
    bias = getattr(model, "logit_bias", None)
    foreign = type(getattr(model, "text", None)).__name__ == FOREIGN

    def context() -> int:
        """Where texts are cut; a tower of transformers has positions for more."""
        return int(tokenizer().context_length if foreign else model.context_length)

    return TextSide(
        read_encoder=lambda: (
            from_roberta(model.text, context()) if foreign else from_open_clip_text(model)
        ),
        read_tokenizer=lambda: from_open_clip_tokenizer(tokenizer(), context()),
        features=_text_encoder(model, tokenizer),
        tokens=lambda texts: tokenizer()(list(texts)),
        templates=prompts,
        logit_scale=scale,
        logit_bias=None if bias is None else float(bias.detach()),
    )


def _text_encoder(model: Any, make_tokenizer: Callable[[], Any]) -> Any:
    """Texts -> features `[n, E]`, not normalized; raises as `load_tokenizer`."""
    # when the first texts come: some need a library that images do not
    tokenizer = cache(lambda: load_tokenizer(make_tokenizer))

    @torch.no_grad()
    def encode(texts: Sequence[str]) -> Tensor:
        out: Tensor = model.encode_text(tokenizer()(list(texts))).float()
        return out

    return encode
