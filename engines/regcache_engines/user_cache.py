"""The user's own folder for what can be made again: nothing in it came with a download."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import EngineError


def user_cache(name: str) -> Path:
    """`$XDG_CACHE_HOME/regcache-deploy/NAME`, by default below `~/.cache`; made for the user alone.

    Raises:
        EngineError: there is no home, it cannot be written, or somebody else owns the folder or may
            write to it.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(base) if base else Path.home() / ".cache"
        folder = folder / "regcache-deploy" / name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except (OSError, RuntimeError) as error:  # RuntimeError: a uid without a home
        raise EngineError(
            f"no folder for built engines ({error}); set XDG_CACHE_HOME to one of your own"
        ) from error
    if os.name == "posix" and (found.st_uid != os.getuid() or found.st_mode & 0o022):
        raise EngineError(
            f"others can write to {folder}, and engines in it would be run as they are; set "
            "XDG_CACHE_HOME to a folder of your own"
        )
    return folder
