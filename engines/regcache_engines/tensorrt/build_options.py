"""How an engine is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..errors import EngineError
from .sidecar import Profile

Hardware = Literal["none", "ampere_plus", "same_compute_capability"]
HARDWARE: tuple[Hardware, ...] = ("none", "ampere_plus", "same_compute_capability")

OnProgress = Callable[[str, int, int], None]
"""Called with a top-level phase of the build, steps done, and steps in all."""


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built.

    Attributes:
        profile: batch sizes.
        workspace_mib: scratch memory a kernel may use; None leaves the runtime's default.
        optimization_level: 0 to 5; None leaves the default.
        version_compatible: newer runtimes may load the engine (not in TensorRT-RTX on a CPU).
        hardware: compatibility across GPUs (full TensorRT).
        strip_weights: leave out weights that a refit can restore (full TensorRT).
        sms: GPUs to compile for, as `89` (TensorRT-RTX); empty takes its default.
        timing_cache: file that keeps kernel timings between builds (full TensorRT).
    """

    profile: Profile = field(default_factory=Profile)
    workspace_mib: int | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    hardware: Hardware = "none"
    strip_weights: bool = False
    sms: tuple[int, ...] = ()
    timing_cache: Path | None = None

    def __post_init__(self) -> None:
        if self.hardware not in HARDWARE:
            raise EngineError(f"hardware '{self.hardware}': take one of {', '.join(HARDWARE)}")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise EngineError(f"optimization level {self.optimization_level}: take 0 to 5")
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise EngineError(f"workspace {self.workspace_mib} MiB: take at least 1")

    def to_json(self) -> dict[str, Any]:
        """What decides the engine; the timing cache only decides how long the build takes."""
        values = asdict(self) | {"sms": list(self.sms)}
        del values["timing_cache"]
        return values
