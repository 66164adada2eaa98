"""What a job takes: block-forwards (one image through one block, forward), and memory."""

from __future__ import annotations

import re
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

STATUS = Path("/proc/self/status")


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


def resident_peak(status: Path = STATUS) -> int | None:
    """Largest resident size of this program alone, bytes; None where the system does not tell.

    VmHWM of Linux: `ru_maxrss` is no less than what the program held that started this one.
    """
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def peak_memory() -> int:
    """Largest resident size of this program so far, bytes."""
    found = resident_peak()
    if found is not None:
        return found
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
