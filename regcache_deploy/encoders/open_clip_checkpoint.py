"""A local checkpoint into a model of open_clip: both towers, or the image tower alone."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import ModelError
from .checkpoint import below_attribute, explain, read_state_dict

VISUAL = "visual."
POSITIONS = "visual.positional_embedding"
BIG_VISION = (".npz", ".npy")
"""Google's own SigLIP files, which open_clip reads."""

POSITION_IDS = "text.transformer.embeddings.position_ids"
"""A counter that transformers kept in its files before release 4.31."""

log = logging.getLogger(__name__)


def load_checkpoint(model: Any, path: Path, image_alone: bool = False) -> bool:
    """Load a file; whether it held a text tower, which stays random otherwise.

    Args:
        model: of open_clip.
        path: the file.
        image_alone: leave the file's text tower out.

    Raises:
        ModelError: the file cannot be read, or does not fit the model as a whole.
    """
    if path.suffix in BIG_VISION:
        _load_big_vision(model, path)
        return True
    state = read_state_dict(path)
    names = set(model.state_dict())
    visual = {name.removeprefix(VISUAL) for name in names if name.startswith(VISUAL)}
    inner = below_attribute(state, names | visual)
    if image_alone:
        inner = {k: v for k, v in inner.items() if k.startswith(VISUAL)} or inner
    if len(inner) < len(state):
        log.info("%s: %d weights beside the model left out", path, len(state) - len(inner))
    try:
        if _is_tower(inner, visual):
            _load_tower(model, inner)
            return False
        _load_both(model, inner)
    except Exception as error:  # torch's, and those of the converters
        raise ModelError(f"{path} does not fit or cannot be read: {explain(error)}") from error
    return True


def _is_tower(state: Mapping[str, Tensor], visual: set[str]) -> bool:
    """Whether nothing but the image tower is there, its names with or without `visual.`."""
    inside = [name.startswith(VISUAL) for name in state]
    return all(inside) or (not any(inside) and 2 * len(visual & state.keys()) > len(visual))


def _resize_positions(state: dict[str, Tensor], model: Any) -> None:
    """open_clip's own, which tells nobody at its default level."""
    from open_clip.model import resize_pos_embed

    before = state.get(POSITIONS)
    resize_pos_embed(state, model)
    if before is not None and len(before) != len(state[POSITIONS]):
        log.warning(
            "the position embedding of %d tokens is resampled to %d: the weights were trained at "
            "another image size (--img-size)",
            len(before),
            len(state[POSITIONS]),
        )
        return
    height, width = getattr(model.visual, "grid_size", (0, 0))
    if before is not None and height != width and len(before) == height * width + 1:
        # as open_clip does; nothing in the weights tells two grids of one size apart
        log.warning(
            "the position embedding of %d patches is taken as %d x %d as it is: right for weights "
            "that were trained at this image size, wrong for those of a square one (--img-size)",
            height * width,
            height,
            width,
        )


def _load_tower(model: Any, state: Mapping[str, Tensor]) -> None:
    full = {VISUAL + name.removeprefix(VISUAL): value for name, value in state.items()}
    _resize_positions(full, model)
    model.visual.load_state_dict(
        {name.removeprefix(VISUAL): value for name, value in full.items()}, strict=True
    )


def _load_both(model: Any, state: dict[str, Tensor]) -> None:
    """What open_clip's own `load_checkpoint` does with the weights once it has read them."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import (
        convert_to_custom_text_state_dict,
        resize_text_pos_embed,
    )

    state = convert_state_dict(model, state)
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    for name in ("logit_scale", "logit_bias"):  # a number, or a vector of one
        if name in state:
            state[name] = state[name].reshape(getattr(model, name).shape)
    if "logit_bias" not in state and getattr(model, "logit_bias", None) is not None:
        state["logit_bias"] = state["logit_scale"].new_zeros(model.logit_bias.shape)
    state.pop(POSITION_IDS, None)
    _resize_positions(state, model)
    resize_text_pos_embed(state, model)
    model.load_state_dict(state, strict=True)


def _load_big_vision(model: Any, path: Path) -> None:
    from open_clip.factory import load_checkpoint as load

    if not path.is_file():
        raise ModelError(f"no checkpoint file at {path}")
    try:
        load(model, str(path))
    except Exception as error:  # numpy's, and those of the converter
        raise ModelError(f"{path} does not fit or cannot be read: {explain(error)}") from error
