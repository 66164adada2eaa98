"""Names of the folds that can be switched; nothing heavy, so that options can check them."""

from __future__ import annotations

from collections.abc import Sequence

from .errors import ConfigError

CALIBRATION_FOLDS = ("layer-scale", "key-bias", "value-bias")
"""Run before calibration unless switched off, in this order."""

EXPORT_FOLDS = ("attention-scale", "cls-only")
"""Run at export unless switched off."""

REPARAMETRIZATION = "reparametrization"
"""Runs inside the calibration of `repqvit`, which chooses its numbers, unless switched off."""

SWITCHABLE = (*CALIBRATION_FOLDS, REPARAMETRIZATION, *EXPORT_FOLDS)


def check_switchable(names: Sequence[str]) -> None:
    """Raise ConfigError unless every name is a fold that can be left out."""
    for name in names:
        if name not in SWITCHABLE:
            raise ConfigError(f"--no-fold {name}: take one of {', '.join(SWITCHABLE)}")
