"""The three public baselines of RegCache."""

from __future__ import annotations

from ...errors import ConfigError
from ..quantizers import Bits
from .base import Baseline, Form
from .naive import Naive
from .ptq4vit import PTQ4ViT
from .repqvit import RepQViT

BASELINES: dict[str, type[Baseline]] = {b.name: b for b in (Naive, PTQ4ViT, RepQViT)}


def baseline_class(name: str) -> type[Baseline]:
    """Look a baseline up. Raises ConfigError for any name but the three."""
    if name not in BASELINES:
        raise ConfigError(f"unknown baseline '{name}'; take one of: {', '.join(BASELINES)}")
    return BASELINES[name]


def make_baseline(
    name: str, bits: Bits | None = None, form: Form = "deploy", seed: int = 0
) -> Baseline:
    """A baseline with its default effort. Raises ConfigError for any name but the three.

    `seed` is that of PTQ4ViT's probes; the others choose nothing at random.
    """
    found = baseline_class(name)(bits, form)
    if isinstance(found, PTQ4ViT):
        found.seed = seed
    return found


def differences(name: str) -> list[str]:
    """Where the deployed form of a baseline differs from its paper form by design.

    One line each, empty for `naive`. Raises ConfigError for any name but the three.
    """
    return list(baseline_class(name).differences)


__all__ = ["BASELINES", "Baseline", "Form", "baseline_class", "differences", "make_baseline"]
