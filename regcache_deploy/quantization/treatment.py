"""Settings: which linears may have their inputs treated per channel before they are quantized."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from regcache_export.spec import LINEARS

from ..errors import ConfigError

ROLES = tuple(role.rsplit(".", 1)[-1] for role in LINEARS)
"""`qkv`, `out_proj`, `fc1`, `fc2`."""

ALPHAS = (0.25, 0.5, 0.75, 0.95, 1.0)
MAX_FLOAT_CHANNELS = 4


@dataclass(frozen=True)
class Treatment:
    """What a calibration may choose from; "nothing" is always among its candidates.

    Attributes:
        smooth: roles whose inputs may be smoothed (SmoothQuant, arXiv 2211.10438). qkv and fc1 are
            smoothed where their inputs have one range for all channels; `repqvit`'s have not.
        float_channels: most input channels of a linear that may stay in floating point.
        alphas: strengths; 1 moves all of the difference between channels into the weight.
    """

    smooth: tuple[str, ...] = ()
    float_channels: int = 0
    alphas: tuple[float, ...] = ALPHAS

    def __post_init__(self) -> None:
        for role in self.smooth:
            if role not in ROLES:
                raise ConfigError(f"no linear '{role}' to smooth; take some of {', '.join(ROLES)}")
        if not 0 <= self.float_channels <= MAX_FLOAT_CHANNELS:
            raise ConfigError(
                f"{self.float_channels} channels in float are out of range: "
                f"take 0 to {MAX_FLOAT_CHANNELS}"
            )
        if not all(0 < alpha <= 1 for alpha in self.alphas):
            raise ConfigError(f"smoothing strengths {self.alphas} must lie above 0, up to 1")

    def without(self, role: str) -> Treatment:
        """The same, with the inputs of a role as they are."""
        return replace(self, smooth=tuple(name for name in self.smooth if name != role))

    @property
    def is_empty(self) -> bool:
        """Whether every input stays as it is."""
        return not self.smooth and not self.float_channels

    def to_json(self) -> dict[str, Any]:
        """Values for keys and provenance."""
        return asdict(self)
