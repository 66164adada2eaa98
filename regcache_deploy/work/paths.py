"""Check folders and files before any work is done."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from ..errors import ConfigError, DataError

DETAILS = "search.json"
"""What a search leaves in its run folder."""

RESULT = "result.json"
"""What an export leaves there."""


def beside(path: Path) -> Path:
    """The folder that `path` lies in, relative where `path` is."""
    return path.parent if path.name not in ("", "..") else path.resolve().parent


def require_folder(path: Path) -> None:
    """Raise DataError where `path` is no folder of images to read."""
    try:
        if path.is_dir():
            return
        if path.exists():
            raise DataError(f"{path} is a file; pass the folder that holds one folder per class")
    except PermissionError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    raise DataError(f"there is no folder {path}; check the path")


def require_writable(path: Path, option: str = "--output") -> None:
    """Raise ConfigError where the folder `path` that an option names could not be written to."""
    place = path.absolute()
    while not os.path.lexists(place):
        place = place.parent
    if os.path.exists(place) and not os.path.isdir(place):
        raise ConfigError(f"{place} is no folder; choose another {option}")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(f"no permission to write in {place}; choose another {option}")


def require_writable_file(path: Path, option: str) -> None:
    """Raise ConfigError where the file `path` could not be written, its folder made first.

    It is replaced as a whole, so that a device, a pipe or what is printed to would be gone.
    """
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a folder; name a file in it")
    if path.exists() and (not path.is_file() or _is_printed_to(path)):
        raise ConfigError(f"{option} {path} is no file that could be replaced; name another one")
    require_writable(path.absolute().parent, option)


def _is_printed_to(path: Path) -> bool:
    """`/dev/stdout` is a file where stdout is one."""
    found = path.stat()
    for number in (1, 2):
        with suppress(OSError):
            if os.path.samestat(os.fstat(number), found):
                return True
    return False


def require_own_plan(output: Path, bundle: str) -> None:
    """Raise ConfigError where a plan in `output` would take the place of another bundle's.

    A folder has one `plan.json`. Links are left out: they lead to a bundle of this folder, or to
    one with its plan elsewhere.
    """
    found = sorted(output.glob("*.regcache"))
    others = [path.name for path in found if path.name != bundle and not path.is_symlink()]
    if others:
        raise ConfigError(
            f"{output} holds {others[0]} with its plan beside it; choose another --output"
        )
