"""How much memory a run may take for what grows with the number of images."""

from __future__ import annotations

import os
from pathlib import Path

from regcache_engines.container import memory_limit

SHARE = 0.5
"""Of the machine's or the container's memory, for the pixels of all sets and the hidden states
together; the rest is for the model, its activations and everybody else."""

DISK_SHARE = 0.5
"""Of the free disk, for hidden states that memory has no room for."""


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
