"""A bundle in the folders that other programs read: immich's, and transformers.js'."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from regcache_engines.bundle import MANIFEST, Bundle

from ..errors import ConfigError
from ..files import atomic_write_bytes, staged_folder
from .immich import immich_files
from .transformers_js import transformers_files

LAYOUTS: dict[str, Callable[[Bundle], dict[str, bytes]]] = {
    "immich": immich_files,
    "transformers": transformers_files,
}


def pack_bundle(bundle: Bundle, layout: str, folder: Path, replace: bool = False) -> list[str]:
    """Write a bundle in another program's layout; the folder is there whole or not at all.

    Args:
        bundle: open.
        layout: one of `LAYOUTS`.
        folder: where to; it must not hold anything.
        replace: it may, and is replaced; never a bundle.

    Returns:
        Names of the files.

    Raises:
        ConfigError: an unknown layout, a folder that is taken, a bundle that the layout has no
            place for, or a disk that refuses; the message says why.
        BundleError: the bundle is damaged.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"--layout {layout}: take one of {', '.join(LAYOUTS)}")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ConfigError(f"{folder} exists and is no folder; choose another name")
    if (folder / MANIFEST).exists():
        raise ConfigError(f"{folder} is a bundle; choose another name")
    if folder.is_dir() and any(folder.iterdir()) and not replace:
        raise ConfigError(f"{folder} is not empty; choose another name, or pass --replace")
    files = LAYOUTS[layout](bundle)
    try:
        with staged_folder(folder) as staging:
            for name, data in files.items():
                (staging / name).parent.mkdir(exist_ok=True)
                atomic_write_bytes(staging / name, data)
    except OSError as error:
        raise ConfigError(
            f"cannot write {folder}: {error}; free space or choose another folder"
        ) from error
    return sorted(files)
