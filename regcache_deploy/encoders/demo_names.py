"""The demo and its variants by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import ConfigError, ModelError
from .settings import DEMO


@dataclass(frozen=True)
class Variant:
    """How a demo differs from the one that was trained.

    Attributes:
        dense: two more units carry the spike, with fc2 columns `v` and `-v` of ordinary size. They
            cancel, so the float function stays.
        milder: the spike is divided by it, the column multiplied. QuickGELU is all but the identity
            at these values, so the float function stays up to its saturation.
    """

    dense: bool = False
    milder: float = 1.0

    @property
    def caution(self) -> str:
        """What is said of the variant beside the demo's own caution."""
        words = [f"spike divided by {self.milder:g}"] if self.milder != 1 else []
        words += ["spike's column of ordinary size"] if self.dense else []
        return ", ".join(words)


VARIANTS: Mapping[str, Variant] = {
    "demo-dense": Variant(dense=True),
    "demo-dense-8": Variant(dense=True, milder=8),
    "demo-mild-8": Variant(milder=8),
    "demo-mild-32": Variant(milder=32),
}
"""`--model` name -> variant."""


def check_demo(name: str, pretrained: str | None) -> None:
    """Raise ModelError where there is no such demo, ConfigError for weights of another."""
    if name != DEMO and name not in VARIANTS:
        raise ModelError(f"unknown model '{name}'; the demos are: {', '.join([DEMO, *VARIANTS])}")
    if pretrained is not None:
        raise ConfigError("the demo brings its own weights; --pretrained goes with --model NAME")
