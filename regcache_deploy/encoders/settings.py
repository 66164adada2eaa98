"""Which encoder, with which weights."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import ConfigError
from ..work.settings import setting

DEMO = "demo"
"""The embedded model."""


@dataclass(frozen=True)
class ModelSettings:
    """The float model. Raises ConfigError for an empty name or a size that is none."""

    model: str = setting(
        DEMO,
        "model name of open_clip, timm/NAME, ORG/NAME on the Hugging Face hub or a folder (in the "
        "layout of open_clip or transformers), an export in float (onnx:FILE), or `demo`, the "
        "embedded one; `regcache models` lists architectures",
        "NAME|ORG/NAME|FOLDER|onnx:FILE",
    )
    pretrained: str | None = setting(
        None,
        "open_clip's or timm's tag, a checkpoint (with TAG= of a tag's weights, for its activation "
        "and preprocessing), or random weights (for structure and speed)",
        "TAG|PATH|TAG=PATH|random[:SEED]",
    )
    img_size: str | None = setting(None, "input size in pixels (default: the model's own)", "N|HxW")
    templates: str = setting("openai", "prompts of the zero-shot head", "openai|simple|FILE")
    classifier: bool = setting(
        False, "keep the ImageNet classifier of a supervised timm/NAME as the head, for top-1"
    )

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("--model is empty; take `demo` or a model name of open_clip")
        self.image_size  # noqa: B018  (checked where it is read)

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width that `--img-size` asks for."""
        if self.img_size is None:
            return None
        match = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", str(self.img_size))
        if match is None:
            raise ConfigError(
                f"--img-size {self.img_size}: write pixels, for example 336 or HEIGHTxWIDTH"
            )
        return int(match[1]), int(match[2] or match[1])
