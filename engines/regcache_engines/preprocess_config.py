"""What a bundle's preprocessing may say: the same that the C++ library takes.

`engines/cpp/src/preprocess_config.cpp` is the other reader; both refuse the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

MAX_SIDE = 16384
MAX_COLOUR, MIN_DEVIATION = 1e6, 1e-6
"""Of means and deviations, for pixels in [0, 1]: beyond them, normalized pixels may be infinite."""
WORDS = {
    "mode": ("RGB",),
    "interpolation": ("bicubic", "bilinear", "random"),  # random: bicubic outside of training
    "resize_mode": ("shortest", "longest", "squash"),
    "crop_mode": ("center", "squash", "border"),
}


def preprocess_problem(config: Mapping[str, Any]) -> str | None:
    """What is wrong with open_clip's preprocess_cfg, in words behind the file's name, or None."""
    for name, value in config.items():
        if name in WORDS:
            if not isinstance(value, str) or value not in WORDS[name]:
                return f"has the unknown {name} {value!r:.60}"
        elif name not in _CHECKS:
            return f"has the unknown field {name!r:.60}"
        elif not _CHECKS[name](value):
            return f"has no usable '{name}'"
    return None


def output_size(config: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width in pixels of a checked preprocessing; 224 where it says nothing."""
    size = config.get("size", 224)
    if isinstance(size, int):
        return size, size
    return size[0], size[-1]


def _is_side(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MAX_SIDE


def _is_size(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) in (1, 2) and all(_is_side(side) for side in value)
    return _is_side(value)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= MAX_COLOUR


def _are_means(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(_is_number(v) for v in value)


def _are_deviations(value: Any) -> bool:
    return _are_means(value) and all(v >= MIN_DEVIATION for v in value)


def _is_crop(value: Any) -> bool:
    return type(value) in (int, float) and 0.01 <= value <= 1


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "size": _is_size,
    "mean": _are_means,
    "std": _are_deviations,
    "fill_color": lambda value: type(value) is int and 0 <= value <= 255,
    "crop_pct": _is_crop,
}
