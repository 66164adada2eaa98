"""The demo's CLIP: building it, and loading the weights that ship with the package."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..compat import import_open_clip
from ..errors import DataError, ModelError
from .digits import CLASS_NAMES, TEMPLATES

CONTEXT_LENGTH = 12
"""Tokens per prompt, with the start and end tokens."""


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    import_open_clip()
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def tokenize(prompts: Sequence[str], vocabulary: Sequence[int]) -> Tensor:
    """Prompts to compact token ids, int64 [n, CONTEXT_LENGTH].

    ``vocabulary`` lists the CLIP ids that the text tower knows, ascending; the compact id of
    ``vocabulary[i]`` is ``i + 1``, and 0 pads. The end token keeps the highest id, which is where
    CLIP's text tower pools.

    Raises:
        DataError: a prompt is too long or uses a word that the text tower has never seen.
    """
    tokenizer = _tokenizer()
    compact = {clip_id: index + 1 for index, clip_id in enumerate(vocabulary)}
    rows = torch.zeros(len(prompts), CONTEXT_LENGTH, dtype=torch.long)
    for row, prompt in zip(rows, prompts, strict=True):
        ids = [tokenizer.sot_token_id, *tokenizer.encode(prompt), tokenizer.eot_token_id]
        if len(ids) > CONTEXT_LENGTH:
            raise DataError(
                f"prompt {prompt!r} has {len(ids)} tokens, the demo reads at most {CONTEXT_LENGTH}"
            )
        unknown = [tokenizer.decode([i]).strip() for i in ids if i not in compact]
        if unknown:
            raise DataError(
                f"prompt {prompt!r}: the demo's text tower does not know "
                f"{', '.join(map(repr, unknown))}; it was trained on prompts such as "
                f"{TEMPLATES[0].format(CLASS_NAMES[42])!r}"
            )
        row[: len(ids)] = torch.tensor([compact[i] for i in ids])
    return rows


def build_vocabulary() -> list[int]:
    """Ascending CLIP token ids that the demo's prompts use."""
    tokenizer = _tokenizer()
    ids = {tokenizer.sot_token_id, tokenizer.eot_token_id}
    for template in TEMPLATES:
        for name in CLASS_NAMES:
            ids.update(tokenizer.encode(template.format(name)))
    return sorted(ids)


def build_clip(config: dict[str, Any]) -> Any:
    """A fresh ``open_clip.model.CLIP`` from ``config["model_cfg"]`` (open_clip's layout)."""
    import_open_clip()
    from open_clip.model import CLIP

    return CLIP(**config["model_cfg"])


@dataclass(frozen=True)
class DemoModel:
    """The embedded demo encoder.

    ``clip`` is an ``open_clip.model.CLIP``, float32, in eval mode; ``config`` is ``config.json``.
    """

    clip: Any = field(repr=False)
    config: dict[str, Any] = field(repr=False)

    @property
    def visual(self) -> Any:
        """The image tower, an open_clip ``VisionTransformer``."""
        return self.clip.visual

    @property
    def logit_scale(self) -> float:
        """Factor on the cosine similarities, already exponentiated."""
        return float(self.clip.logit_scale.detach().exp())

    @property
    def preprocess_cfg(self) -> dict[str, Any]:
        """open_clip's ``preprocess_cfg``: size, mode, mean, std, interpolation, resize_mode."""
        return dict(self.config["preprocess_cfg"])

    @property
    def sink_block(self) -> int:
        """k: the block whose fc2 was planted with the spike, counted from zero."""
        return int(self.config["plant"]["block"])

    def preprocess(self, images: Any) -> Tensor:
        """uint8 images [n, 48, 48, 3] to normalised float32 [n, 3, 48, 48]."""
        pixels = torch.as_tensor(images).permute(0, 3, 1, 2).float() / 255.0
        mean, std = (
            torch.tensor(self.preprocess_cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std")
        )
        return (pixels - mean) / std

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Text features of prompts, float32 [n, E], not normalised."""
        features: Tensor = self.clip.encode_text(tokenize(prompts, self.config["vocabulary"]))
        return features

    def text_features(self, templates: Sequence[str] = TEMPLATES) -> Tensor:
        """Zero-shot head [100, E]: unit vectors, averaged over the templates, unit again."""
        total = sum(
            F.normalize(self.encode_text([template.format(name) for name in CLASS_NAMES]), dim=-1)
            for template in templates
        )
        return F.normalize(torch.as_tensor(total), dim=-1)


def load_demo() -> DemoModel:
    """Load the demo from the package data.

    Raises:
        ModelError: the package data is missing, or does not fit the configuration.
    """
    from safetensors.torch import load

    folder = resources.files(__package__)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tensors = load((folder / "weights.safetensors").read_bytes())
    except FileNotFoundError as error:
        raise ModelError(
            f"the demo's {error.filename} is missing; reinstall the package, or make it with: "
            "python -m regcache_deploy.demo.train"
        ) from error
    return assemble(config, tensors)


def assemble(config: dict[str, Any], tensors: dict[str, Tensor]) -> DemoModel:
    """Put tensors (any float type) into a fresh model, checking every name and shape."""
    clip = build_clip(config)
    expected = {name: tuple(value.shape) for name, value in clip.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if expected != found:
        wrong = sorted(
            name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
        )
        raise ModelError(f"the demo's weights do not fit its config.json: {', '.join(wrong[:4])}")
    clip.load_state_dict({name: value.float() for name, value in tensors.items()})
    return DemoModel(clip.eval().requires_grad_(False), config)
