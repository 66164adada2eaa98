"""How much memory a run may take for what grows with the number of images."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from regcache_engines.container import memory_limit

SHARE = 0.5
"""Of the machine's or the container's memory, for the pixels of all sets and the hidden states
together; the rest is for the model, its activations and everybody else."""

DISK_SHARE = 0.5
"""Of the free disk, for hidden states that memory has no room for."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of malloc.h."""


def machine_memory() -> int:
    """Bytes that this machine has, or a container's limit."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(memory, memory_limit() or memory)


def image_memory() -> int:
    """Bytes for pixels and hidden states together."""
    return int(SHARE * machine_memory())


def free_disk(folder: Path) -> int:
    """Bytes that may be written into a folder; 0 where it cannot be asked."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        found = os.statvfs(folder)
    except OSError:
        return 0
    return int(DISK_SHARE * found.f_bavail * found.f_frsize)


def keep_freed_memory() -> None:
    """Have the C library keep what a layer frees for the next one. glibc only, else nothing.

    In a process that has not yet freed anything large it gives memory of some MiB back at once, so
    that every layer is handed new pages.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:  # musl has none
        mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
        mallopt(M_TRIM_THRESHOLD, 512 * 2**20)
