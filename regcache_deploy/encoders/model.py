"""What a loaded model is."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from .canonical import Encoder
from .text_side import TextSide
from .zero_shot_head import TextHead


@dataclass(frozen=True)
class LoadedModel:
    """An encoder and what belongs to it.

    Attributes:
        name, pretrained: as the user gave them.
        encoder: canonical, float32.
        preprocess: open_clip's preprocess_cfg: size, mode, mean, std, interpolation, resize_mode;
            for timm's encoders also crop_pct and crop_mode.
        text_head: zero-shot head for class names, or None where there is no text encoder.
        text_features: texts -> features `[n, E]`, not normalized, or None; for retrieval.
        text: the text tower and its tokenizer for a bundle, or None.
        logit_scale: factor on cosine similarities.
        caution: what every figure of this model must be read with, or None for real weights.
    """

    name: str
    pretrained: str | None
    encoder: Encoder
    preprocess: dict[str, Any]
    text_head: TextHead | None = field(default=None, repr=False)
    text_features: Any | None = field(default=None, repr=False)
    text: TextSide | None = field(default=None, repr=False)
    logit_scale: float = 100.0
    caution: str | None = None

    def to(self, device: torch.device) -> LoadedModel:
        """The same model with its image encoder on a device; the text side stays where it is."""
        return replace(self, encoder=self.encoder.to(device))

    @property
    def is_random(self) -> bool:
        return (self.pretrained or "").startswith("random")

    def weights_sha256(self) -> str:
        """Hash of every weight's name and bytes, in name order."""
        digest = hashlib.sha256()
        for name in sorted(self.encoder.weights):
            digest.update(name.encode())
            digest.update(self.encoder.weights[name].cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def random_caution(seed: int | None) -> str | None:
    return None if seed is None else f"random weights (seed {seed}): structure and speed only"
