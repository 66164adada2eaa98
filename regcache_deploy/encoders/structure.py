"""Any architecture's image tower without its weights, at full or reduced depth.

Built on torch's meta device, so even a tower of billions of parameters costs no memory; the text
tower is never built.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..compat import import_open_clip, require
from ..errors import ModelError
from .canonical import Encoder
from .names import TIMM
from .open_clip_timm import from_open_clip_tower
from .timm_vit import from_timm


def build_tower(name: str, depth: int | None = None) -> nn.Module:
    """The image tower of an architecture on the meta device, in evaluation mode.

    Args:
        name: an architecture of open_clip, or `timm/NAME` (without its classifier).
        depth: keep only the first blocks of a ViT.

    Raises:
        ModelError: the library cannot build it.
    """
    try:
        with torch.device("meta"), quiet_root_logger():
            tower = _timm_tower(name) if name.startswith(TIMM) else _open_clip_tower(name)
    except Exception as error:  # anything: the libraries build architectures of every kind
        text = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{name} cannot be built: {text[:200]}") from error
    if depth is not None:
        cut_depth(tower, depth)
    return tower.eval()


def cut_depth(tower: Any, depth: int) -> None:
    """Keep the first `depth` blocks of a ViT; other towers stay as they are."""
    trunk = getattr(tower, "trunk", tower)
    if hasattr(trunk, "transformer") and hasattr(trunk.transformer, "resblocks"):
        trunk.transformer.resblocks = trunk.transformer.resblocks[:depth]
    elif isinstance(getattr(trunk, "blocks", None), (nn.Sequential, nn.ModuleList)):
        trunk.blocks = trunk.blocks[:depth]


def read_tower(name: str, tower: nn.Module) -> Encoder:
    """The canonical encoder of a tower from `build_tower`.

    Raises:
        UnsupportedEncoderError: it does not fit; the message names the feature.
    """
    return from_timm(tower) if name.startswith(TIMM) else from_open_clip_tower(tower)


def fill_randomly(tower: nn.Module, seed: int = 0) -> nn.Module:
    """Move a tower from the meta device to the CPU, with random weights of a sensible size.

    Every weight, bias, norm and embedding is random, also those that libraries start at zero or
    one, so that an adapter which forgets one of them is caught.
    """
    tower = tower.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        kinds = (nn.LayerNorm, nn.BatchNorm2d)
        norms = {id(p) for m in tower.modules() if isinstance(m, kinds) for p in [m.weight]}
        for parameter in tower.parameters():
            spread = 0.1 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
            parameter.normal_(0.0, spread, generator=generator)
            if id(parameter) in norms:
                parameter.add_(1.0)
        for buffer in tower.buffers():
            buffer.zero_()
        for module in tower.modules():
            again: Any = getattr(module, "init_non_persistent_buffers", None)
            if again is not None:  # angles of timm's RoPE
                again()
            if isinstance(module, nn.BatchNorm2d):
                for statistic, low in ((module.running_mean, -0.5), (module.running_var, 0.5)):
                    if statistic is not None:
                        statistic.uniform_(low, low + 1.0, generator=generator)
    return tower


@contextlib.contextmanager
def quiet_root_logger() -> Iterator[None]:
    """open_clip warns on the root logger that random weights are random; we say so ourselves."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _open_clip_tower(name: str) -> nn.Module:
    open_clip = import_open_clip()
    from open_clip.model import _build_vision_tower

    config = open_clip.get_model_config(name)
    if config is None:
        raise ModelError(f"open_clip has no architecture '{name}'")
    vision = dict(config["vision_cfg"])
    vision["timm_model_pretrained"] = False
    tower: Any = _build_vision_tower(config["embed_dim"], vision, config.get("quick_gelu", False))
    if "timm_model_name" in vision and config.get("force_image_size"):
        tower.set_input_size(config["force_image_size"])
    built: nn.Module = tower
    return built


def _timm_tower(name: str) -> nn.Module:
    import_open_clip()
    timm = require("timm", "search")
    model: nn.Module = timm.create_model(name.removeprefix(TIMM), pretrained=False, num_classes=0)
    return model
