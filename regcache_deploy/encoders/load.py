"""From `--model` and `--pretrained` to an encoder with its preprocessing and its text side."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..compat import import_open_clip
from ..errors import ConfigError, ModelError
from .canonical import Encoder
from .open_clip_vit import from_open_clip

DEMO = "demo"

TextHead = Callable[[Sequence[str]], Tensor]
"""Class names -> L2-normalized zero-shot head `[C, E]`."""


@dataclass(frozen=True)
class LoadedModel:
    """An encoder and what belongs to it.

    Attributes:
        name, pretrained: as the user gave them.
        encoder: canonical, float32.
        preprocess: open_clip's preprocess_cfg: size, mode, mean, std, interpolation, resize_mode.
        text_head: zero-shot head for class names, or None where there is no text encoder.
        logit_scale: factor on cosine similarities.
        caution: what every figure of this model must be read with, or None for real weights.
    """

    name: str
    pretrained: str | None
    encoder: Encoder
    preprocess: dict[str, Any]
    text_head: TextHead | None = field(default=None, repr=False)
    logit_scale: float = 100.0
    caution: str | None = None

    @property
    def is_random(self) -> bool:
        return (self.pretrained or "").startswith("random")

    def weights_sha256(self) -> str:
        """Hash of every weight's name and bytes, in name order."""
        digest = hashlib.sha256()
        for name in sorted(self.encoder.weights):
            digest.update(name.encode())
            digest.update(self.encoder.weights[name].contiguous().numpy().tobytes())
        return digest.hexdigest()


def load_model(name: str, pretrained: str | None = None) -> LoadedModel:
    """Load an image encoder.

    Args:
        name: `demo`, or a model name of open_clip.
        pretrained: open_clip's tag, a checkpoint path, or `random[:SEED]`.

    Raises:
        ConfigError: no or contradictory `--pretrained`.
        ModelError: unknown name or tag, unreadable or non-matching weights, NaN.
        UnsupportedEncoderError: an architecture the canonical encoder lacks.
    """
    model = _load_demo(pretrained) if name == DEMO else _load_open_clip(name, pretrained)
    model.encoder.check_finite()
    return model


def _load_demo(pretrained: str | None) -> LoadedModel:
    if pretrained is not None:
        raise ConfigError("the demo brings its own weights; --pretrained goes with --model NAME")
    import_open_clip()
    from ..demo.digits import CLASS_NAMES
    from ..demo.model import load_demo

    demo = load_demo()

    def text_head(names: Sequence[str]) -> Tensor:
        if list(names) != list(CLASS_NAMES):
            raise ModelError("the demo's text encoder knows only its own hundred numbers")
        return demo.text_features()

    return LoadedModel(
        name=DEMO,
        pretrained=None,
        encoder=from_open_clip(demo.visual),
        preprocess=dict(demo.preprocess_cfg),
        text_head=text_head,
        logit_scale=float(demo.logit_scale),
        caution="synthetic demo model with planted sinks; says nothing about natural models",
    )


def _load_open_clip(name: str, pretrained: str | None) -> LoadedModel:
    open_clip = import_open_clip()
    known = open_clip.list_models()
    if name not in known:
        raise ModelError(f"unknown model '{name}'{_suggest(name, [DEMO, *known])}")
    if pretrained is None:
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise ConfigError(
            f"--model {name} needs --pretrained: a tag ({', '.join(tags) or 'none known'}), "
            "a checkpoint path, or random[:SEED]"
        )
    seed = _random_seed(pretrained)
    checkpoint = Path(pretrained) if seed is None and _looks_like_path(pretrained) else None
    if checkpoint is not None and not checkpoint.is_file():
        raise ModelError(f"no checkpoint file at {checkpoint}")
    tag = pretrained if seed is None and checkpoint is None else None
    if tag is not None and tag not in open_clip.list_pretrained_tags_by_model(name):
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise ModelError(f"{name} has no pretrained tag '{tag}'{_suggest(tag, tags)}")
    model = _create(open_clip, name, tag, seed, checkpoint)
    config = open_clip.get_model_preprocess_cfg(model)
    scale = getattr(model, "logit_scale", None)
    return LoadedModel(
        name=name,
        pretrained=pretrained,
        encoder=from_open_clip(model.visual),
        preprocess={k: list(v) if isinstance(v, tuple) else v for k, v in config.items()},
        # a random text tower classifies at chance, at the price of 80 prompts per class
        text_head=_zero_shot_head(open_clip, model, name) if seed is None else None,
        logit_scale=float(scale.detach().exp()) if scale is not None else 100.0,
        caution=None if seed is None else f"random weights (seed {seed}): structure and speed only",
    )


def _create(
    open_clip: Any, name: str, tag: str | None, seed: int | None, checkpoint: Path | None
) -> Any:
    try:
        with torch.random.fork_rng(devices=[]), _quiet_root_logger():
            torch.manual_seed(0 if seed is None else seed)
            model = open_clip.create_model(
                name, pretrained=tag, precision="fp32", pretrained_text=False
            )
        if checkpoint is not None:
            _load_checkpoint(model, checkpoint)
    except (ModelError, ConfigError):
        raise
    except Exception as error:
        where = f"place the file and pass its path: --pretrained PATH ({_first_line(error)})"
        raise ModelError(f"the weights '{tag}' of {name} could not be had; {where}") from error
    return model.eval()


@contextlib.contextmanager
def _quiet_root_logger() -> Iterator[None]:
    """open_clip warns on the root logger that random weights are random; we say so ourselves."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _load_checkpoint(model: Any, path: Path) -> None:
    from open_clip.factory import load_checkpoint

    try:
        load_checkpoint(model, str(path), strict=True, weights_only=True)
    except Exception as error:  # torch, safetensors and pickle each raise their own kinds
        raise ModelError(f"{path} does not fit or cannot be read: {_explain(error)}") from error


def _explain(error: Exception) -> str:
    """The part of a loading error that names keys and shapes, on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    details = [line for line in lines if "key(s)" in line or "size mismatch" in line]
    text = "; ".join(details[:2]) or (lines[0] if lines else type(error).__name__)
    return text if len(text) <= 300 else text[:297] + "..."


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _zero_shot_head(open_clip: Any, model: Any, name: str) -> TextHead | None:
    if not hasattr(model, "encode_text"):
        return None

    @torch.no_grad()
    def text_head(names: Sequence[str]) -> Tensor:
        head: Tensor = open_clip.build_zero_shot_classifier(
            model,
            tokenizer=open_clip.get_tokenizer(name),
            classnames=list(names),
            templates=open_clip.OPENAI_IMAGENET_TEMPLATES,
            num_classes_per_batch=10,
            device="cpu",
        )
        return head.T.float().contiguous()

    return text_head


def _random_seed(pretrained: str) -> int | None:
    kind, _, seed = pretrained.partition(":")
    if kind != "random":
        return None
    if seed and not seed.isdecimal():
        raise ConfigError(f"--pretrained {pretrained}: the seed must be a whole number")
    return int(seed or 0)


def _looks_like_path(text: str) -> bool:
    return "/" in text or Path(text).suffix in {".pt", ".pth", ".bin", ".safetensors", ".npz"}


def _suggest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return f"; did you mean: {', '.join(close)}?" if close else ""
