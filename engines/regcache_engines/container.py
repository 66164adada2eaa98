"""What a container may use of its machine: limits of Linux control groups, version 1 and 2.

The kernel tells programs of a container the machine's cores and memory; what they may use stands
in files of their control group and of all groups above it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")


def cpu_limit(root: Path = ROOT) -> float | None:
    """Cores' worth of time that this process may use, e.g. 0.5; None where nothing limits it."""
    limits = []
    for folder in _groups("cpu", root):
        words = _words(folder / "cpu.max")  # version 2: "50000 100000", or "max 100000"
        if not words:
            words = _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
        quota, period = (_number(word) for word in words) if len(words) == 2 else (None, None)
        if quota and period:
            limits.append(quota / period)
    return min(limits, default=None)


def memory_limit(root: Path = ROOT) -> int | None:
    """Bytes that this process may use, or None where nothing limits it."""
    limits = []
    for folder in _groups("memory", root):
        words = _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes")
        limit = _number(words[0]) if words else None
        if limit is not None:
            limits.append(limit)
    return min(limits, default=None)


def usable_cpus() -> int:
    """CPUs that this process may run on; a container that is given some of them has no other."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def within_cpu_limit(cores: int, root: Path = ROOT) -> int:
    """As many of `cores` as the limit leaves, at least 1; a part of a core counts as one."""
    limit = cpu_limit(root)
    return cores if limit is None else max(1, min(cores, math.ceil(limit)))


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Folders of this process's group and of those above it, for one controller."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        names, _, place = line.partition(":")[2].partition(":")
        if names == "":
            mounts = ["", "unified"]
        elif controller in names.split(","):
            mounts = [names, controller]
        else:
            continue
        path = PurePosixPath(place.lstrip("/"))
        # a container often sees its own group as the root, under the path of the host
        for mount in dict.fromkeys(mounts):
            for part in (path, *path.parents):
                yield root / "sys/fs/cgroup" / mount / part


def _words(path: Path) -> list[str]:
    return _read(path).split()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(word: str) -> int | None:
    """A positive number; `max` and -1 are none."""
    return int(word) if word.isascii() and word.isdigit() and int(word) > 0 else None
