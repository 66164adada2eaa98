"""CPU threads of torch: as many as this process may use, asleep while there is nothing to do."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

from regcache_engines.container import within_cpu_limit

ASLEEP = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
"""OpenMP's threads spin behind every operator, for up to 200 ms in some builds. Where two programs
share the cores, each then waits for the other's idle threads (docs/scale.md has the times)."""

BUSY = 1.5
"""Load for each core above which a run is told to take fewer threads."""

log = logging.getLogger(__name__)


def sleep_while_idle() -> None:
    """Ask for it in the environment, unless the user has asked for something there.

    OpenMP reads its words when it is loaded, so call this before torch is imported.
    """
    if not ASLEEP.keys() & os.environ.keys():
        os.environ.update(ASLEEP)


def settle_threads(threads: int | None) -> None:
    """Give torch `threads`; None stands for what affinity, quota and `OMP_NUM_THREADS` leave.

    Warns where the machine is busy and the number was not chosen.
    """
    import torch

    torch.set_num_threads(threads or within_cpu_limit(torch.get_num_threads()))
    if threads is None and (hint := busy_hint()):
        log.warning("%s", hint)


def busy_hint(environment: Mapping[str, str] = os.environ) -> str | None:
    """What to do about a machine that computes more than its cores can; None where it does not."""
    if "OMP_NUM_THREADS" in environment or not hasattr(os, "getloadavg"):
        return None
    load, count = os.getloadavg()[0], os.cpu_count() or 1
    if within_cpu_limit(count) < 2 or load <= BUSY * count:
        return None
    return (
        f"this machine is busy (load {load:.1f} on {count} CPUs); where it stays so, --threads 1 "
        "may be faster"
    )
