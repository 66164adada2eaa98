"""Something that `regcache eval` compares: a name, and a function from images to embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..data.stream import Batch

if TYPE_CHECKING:
    from ..quantization.simulate import Calibration

FP32, BASELINE, SIMULATED = "fp32", "baseline", "simulated"
IN_TORCH = (FP32, BASELINE, SIMULATED)


@dataclass(frozen=True)
class Runner:
    """Something that turns a batch into embeddings `[b, E]`, float32, not L2-normalized.

    Attributes:
        calibration: what it simulates, where it computes in torch.
        note: how it came to be, where its name does not say it; for people.
    """

    name: str
    run: Callable[[Batch], npt.NDArray[np.float32]] = field(repr=False)
    note: str = ""
    calibration: Calibration | None = field(default=None, repr=False)
