"""Adapter: open_clip's `TimmModel` (SigLIP, SigLIP2, MobileCLIP2-L, EVA01) to the canonical one."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import UnsupportedEncoderError
from .canonical import Encoder
from .open_clip_vit import from_open_clip
from .timm_vit import check_kind, from_timm


def from_open_clip_tower(visual: Any) -> Encoder:
    """Read any image tower of open_clip.

    Raises:
        UnsupportedEncoderError: it is no plain pre-norm ViT; the message names what it is.
    """
    from open_clip.timm_model import TimmModel

    if not isinstance(visual, TimmModel):
        return from_open_clip(visual)
    check_kind(visual.trunk)
    return from_timm(visual.trunk, _projection(visual.head))


def _projection(head: nn.Sequential) -> nn.Linear | None:
    """open_clip's linear projection behind the trunk; dropout is nothing at inference."""
    parts = [m for m in head.children() if not isinstance(m, (nn.Dropout, nn.Identity))]
    if not parts:
        return None
    if len(parts) == 1 and isinstance(parts[0], nn.Linear):
        return parts[0]
    names = ", ".join(type(part).__name__ for part in parts)
    raise UnsupportedEncoderError(f"unsupported projection behind the image tower: {names}")
