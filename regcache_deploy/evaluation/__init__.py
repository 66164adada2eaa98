"""Objectives, zero-shot accuracy, and paired statistics."""

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
