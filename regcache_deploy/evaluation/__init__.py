"""Objectives, zero-shot accuracy, and paired statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .objective import FeatureError, FeatureFidelity, Objective, Score, ZeroShotTop1
    from .paired import PairedComparison, compare_paired

__all__ = [
    "FeatureError",
    "FeatureFidelity",
    "Objective",
    "PairedComparison",
    "Score",
    "ZeroShotTop1",
    "compare_paired",
]


def __getattr__(name: str) -> Any:
    """Import on first use: objectives need torch, and what is deployed is compared without it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    home = "paired" if name in ("PairedComparison", "compare_paired") else "objective"
    return getattr(import_module(f".{home}", __name__), name)
