"""From `--model` and `--pretrained` to an encoder with its preprocessing and its text side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from ..compat import import_open_clip
from ..errors import ConfigError, ModelError
from ..work.progress import Reporter
from .load_natural import load_natural
from .load_onnx import load_onnx
from .load_open_clip import load_open_clip
from .load_timm import load_timm
from .load_transformers import load_transformers
from .model import LoadedModel
from .names import NATURAL, ONNX, TIMM
from .open_clip_vit import from_open_clip
from .settings import DEMO
from .size_warnings import warn_of_cut_pixels
from .source import find_source
from .zero_shot_head import DEFAULT_TEMPLATES, TextHead, text_tower_key

if TYPE_CHECKING:
    from ..demo.model import DemoModel

__all__ = ["DEMO", "LoadedModel", "TextHead", "load_model"]


def load_model(
    name: str,
    pretrained: str | None = None,
    image_size: tuple[int, int] | None = None,
    templates: str = DEFAULT_TEMPLATES,
    classifier: bool = False,
) -> LoadedModel:
    """Load an image encoder.

    Args:
        name: `demo` or one of its variants (`demo-dense`, ...), `natural-vit-s14`, an architecture
            of open_clip, `timm/NAME[.TAG]`, or a repository of the hub (`[hf-hub:]ORG/NAME`) or a
            folder (`[local-dir:]PATH`) in the layout of open_clip or transformers; `onnx:FILE`.
        pretrained: the library's tag, a checkpoint path (`.safetensors`, `.pt`), or
            `random[:SEED]`; `demo`, repositories and folders bring their own, and so does
            `natural-vit-s14` unless an edited copy of it is named.
        image_size: height and width in place of the model's own.
        templates: prompts of the zero-shot head: `openai`, `simple`, or a file.
        classifier: the classifier of a supervised `timm/NAME` is its head.

    Raises:
        ConfigError: no or contradictory `--pretrained`, unknown templates, or a classifier of
            something else than `timm/NAME`.
        ModelError: unknown name or tag, weights that cannot be had, do not fit, or hold NaN.
        UnsupportedEncoderError: an architecture the canonical encoder lacks.
    """
    if classifier and not name.startswith(TIMM):
        raise ConfigError(f"--classifier is for supervised models of timm, not for {name}")
    if name.partition("-")[0] == DEMO:
        model = _load_demo(name, pretrained, image_size, templates)
    elif name == NATURAL:
        model = load_natural(pretrained, image_size)
    elif name.startswith(TIMM):
        model = load_timm(name, pretrained, image_size, classifier)
    elif name.startswith(ONNX):
        model = load_onnx(name, pretrained, image_size)
    else:
        source = find_source(name, pretrained)
        if source is None or source.open_clip is not None:
            model = load_open_clip(name, pretrained, image_size, templates, source)
        else:
            model = load_transformers(
                name, source.files, pretrained, image_size, templates=templates
            )
    model.encoder.check_finite()
    warn_of_cut_pixels(name, model.encoder.spec)
    return model


@dataclass(frozen=True)
class DemoHead:
    """The head of the demo; implements `TextHead`."""

    demo: DemoModel

    def __call__(self, names: Sequence[str], reporter: Reporter | None = None) -> Tensor:
        from ..demo.digits import CLASS_NAMES

        if list(names) != list(CLASS_NAMES):
            raise ModelError("the demo's text encoder knows only its own hundred numbers")
        return self.demo.text_features()

    def key(self, names: Sequence[str]) -> str:
        return text_tower_key(self.demo.clip, names, self.demo.config["vocabulary"])


def _load_demo(
    name: str, pretrained: str | None, image_size: tuple[int, int] | None, templates: str
) -> LoadedModel:
    from .demo_names import VARIANTS, check_demo
    from .demo_variants import edit

    check_demo(name, pretrained)
    variant = VARIANTS.get(name)
    if image_size is not None or templates != DEFAULT_TEMPLATES:
        raise ConfigError("the demo has its own image size and prompt templates")
    import_open_clip()
    from ..demo.model import load_demo

    demo = load_demo()
    encoder = from_open_clip(demo.visual)
    caution = "synthetic demo model with planted sinks; says nothing about natural models"
    if variant is not None:
        encoder = edit(encoder, variant, demo.config["plant"])
        caution = caution.replace("planted sinks", f"planted sinks ({variant.caution})")
    return LoadedModel(
        name=name,
        pretrained=None,
        encoder=encoder,
        preprocess=dict(demo.preprocess_cfg),
        text_head=DemoHead(demo),
        text_features=demo.encode_text,
        logit_scale=float(demo.logit_scale),
        caution=caution,
    )
