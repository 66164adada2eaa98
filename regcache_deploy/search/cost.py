"""What a search costs, counted in block-forwards: one image through one block, forward.

Counted is every block that runs for the decision: float passes, sensitivity, register capture,
calibration and evaluation. Backward passes of a calibration are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..quantization.baselines import Baseline
from ..quantization.encoder_folds import VALUE_BALANCE
from .space import SearchSpace

CALIBRATION_WALKS = {"ptq4vit": 2}
"""Forward walks of a calibration over its blocks; one where a baseline is not named."""


def calibration_walks(baseline: Baseline) -> int:
    """How often `Baseline.calibrate` sends its images through the blocks that it calibrates."""
    return CALIBRATION_WALKS.get(baseline.name, 1) + (VALUE_BALANCE in baseline.folds)


def exhaustive_block_forwards(
    space: SearchSpace, depth: int, search_images: int, calibration_images: int, walks: int = 1
) -> int:
    """What the plain full grid takes: every choice calibrated and evaluated on all images.

    Hidden states before the first block that a choice changes are computed once, so this counts
    less than the published procedure, which runs the whole model for every choice. The float
    features, the sensitivity analysis and the register come on top for either strategy and are
    not in here.

    Args:
        walks: see `calibration_walks`.
    """
    grid = space.grid()
    total = walks * calibration_images * depth
    furthest = max(config.first_block for config in grid)
    total += (search_images + calibration_images) * furthest
    for config in grid:
        blocks = depth - config.first_block
        total += search_images * blocks
        if not config.is_empty:
            total += walks * calibration_images * blocks
    return total


@dataclass(frozen=True)
class SearchCost:
    """The count of a finished search.

    Attributes:
        block_forwards: everything, from the float features to the decision.
        exhaustive_block_forwards: see `exhaustive_block_forwards`; the published grid of (t, tau,
            k~) alone, also where a second delete count was searched.
        seconds: wall time of this run.
        resumed_block_forwards: part of `block_forwards` that an earlier run had done.
        hidden_state_bytes: most bytes of hidden states held in memory at once.
        spilled_state_bytes: of hidden states on disk.
        peak_memory_bytes: largest resident size of the process so far, libraries and weights
            included.
    """

    block_forwards: int
    exhaustive_block_forwards: int
    seconds: float
    resumed_block_forwards: int = 0
    hidden_state_bytes: int = 0
    spilled_state_bytes: int = 0
    peak_memory_bytes: int = 0

    @property
    def share(self) -> float:
        """Of the exhaustive grid."""
        return self.block_forwards / self.exhaustive_block_forwards

    def to_json(self) -> dict[str, Any]:
        return {
            "block_forwards": self.block_forwards,
            "exhaustive_block_forwards": self.exhaustive_block_forwards,
            "seconds": round(self.seconds, 1),
            "share": round(self.share, 5),
            "resumed_block_forwards": self.resumed_block_forwards,
            "hidden_state_bytes": self.hidden_state_bytes,
            "spilled_state_bytes": self.spilled_state_bytes,
            "peak_memory_bytes": self.peak_memory_bytes,
        }
