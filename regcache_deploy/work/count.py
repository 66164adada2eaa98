"""What a job takes: block-forwards (one image through one block, forward), and memory."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass


@dataclass
class Work:
    """A running count.

    Attributes:
        block_forwards: of everything so far, whether it was run now or by the run that this one
            resumes: a resumed search reports what an uninterrupted one would have.
        resumed: the part that was found finished.
    """

    block_forwards: int = 0
    resumed: int = 0

    def add(self, amount: int, resumed: bool = False) -> None:
        self.block_forwards += amount
        self.resumed += amount if resumed else 0


def peak_memory() -> int:
    """Largest resident size of this process so far, bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
