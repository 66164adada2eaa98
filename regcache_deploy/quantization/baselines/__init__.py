"""The three public baselines of RegCache."""

from __future__ import annotations

from ...errors import ConfigError
from ..quantizers import Bits
from .base import Baseline, Form
from .naive import Naive

BASELINES: dict[str, type[Baseline]] = {b.name: b for b in (Naive,)}


def make_baseline(name: str, bits: Bits | None = None, form: Form = "deploy") -> Baseline:
    """Look a baseline up. Raises ConfigError for any name but the three."""
    if name not in BASELINES:
        raise ConfigError(f"unknown baseline '{name}'; take one of: {', '.join(BASELINES)}")
    return BASELINES[name](bits, form)


__all__ = ["BASELINES", "Baseline", "Form", "make_baseline"]
