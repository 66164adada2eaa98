"""Find the images of a folder and choose a class-balanced subset. Opens no image, needs no torch.

The layout is torchvision's ImageFolder: one sub-folder per class, searched to any depth. A folder
without sub-folders is a flat one: images without labels.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from ..errors import DataError
from ..work.format import counted
from ..work.paths import require_folder
from .tables import is_list, metadata_of, read_table

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff"),
    *(".jfif", ".jpe", ".gif", ".avif"),
)
"""torchvision's list and what else cameras and browsers write; compared without regard to case."""

MIN_IMAGES = 2

MAX_UNREADABLE = 0.01
"""Share of unreadable images above which a folder is taken for damaged."""

_SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "images"}


@dataclass(frozen=True)
class FolderListing:
    """Files of an image folder.

    Attributes:
        root: the folder.
        folders: names of the class folders that hold images, sorted; empty for a flat folder.
        files: per class folder its files, sorted; one list for a flat folder.
        ignored: files that are no images by their suffix, loose images beside class folders, and
            linked folders inside of classes.
        repeated: lines of a table that name a file again.
        empty: names of folders without images.
        unnamed: images of a folder that its metadata do not name.
    """

    root: Path
    folders: tuple[str, ...]
    files: tuple[tuple[Path, ...], ...] = field(repr=False)
    ignored: int = 0
    repeated: int = 0
    empty: tuple[str, ...] = ()
    unnamed: int = 0

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was left out, a line each; for whoever reads the images to tell, once."""
        lines = []
        if self.empty:
            found = counted(len(self.empty), "folder")
            lines.append(f"{self.root}: {found} without images: {_first(self.empty)}")
        if self.ignored:
            found = counted(self.ignored, "file is no image", "files are no images")
            lines.append(f"{self.root}: {found} of a class; left out")
        if self.unnamed:
            found = counted(self.unnamed, "image is", "images are")
            lines.append(f"{self.root}: {found} not in its metadata; left out")
        if self.repeated:
            found = counted(self.repeated, "line names", "lines name")
            lines.append(f"{self.root}: {found} a file again; left out")
        return tuple(lines)

    def name(self, file: Path) -> str:
        """A file as messages and results name it."""
        return str(file.relative_to(self.root)) if file.is_relative_to(self.root) else str(file)

    def __len__(self) -> int:
        return sum(len(files) for files in self.files)

    def choose(self, limit: int | None, seed: int) -> list[tuple[Path, int]]:
        """At most `limit` files with the index of their class folder.

        Classes take turns, in an order drawn by `seed`, so that every front part of the list is
        balanced, and a smaller limit gives the front part of a larger one.
        """
        draw = random.Random(seed)
        piles = [[(path, index) for path in files] for index, files in enumerate(self.files)]
        for pile in piles:
            draw.shuffle(pile)
        draw.shuffle(piles)
        chosen: list[tuple[Path, int]] = []
        longest = max((len(pile) for pile in piles), default=0)
        for turn in range(longest):
            chosen += [pile[turn] for pile in piles if turn < len(pile)]
            if limit is not None and len(chosen) >= limit:
                return chosen[:limit]
        return chosen


def scan_folder(path: Path) -> FolderListing:
    """List the images under `path`, or those that a table names (`tables.py`).

    Args:
        path: a folder, also one with Hugging Face's metadata, or a list of files.

    Raises:
        DataError: no such folder, not readable, no images, or a single one.
    """
    if is_list(path):
        return _scan_table(path)
    require_folder(path)
    table = metadata_of(path)
    if table is not None:
        listing = _scan_table(table)
        return replace(listing, unnamed=_unnamed(path, listing))
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    visible = [entry for entry in entries if not entry.name.startswith(".")]
    loose = [Path(entry.path) for entry in visible if not _is_folder(entry)]
    images = [file for file in loose if _is_image(file)]
    classes: dict[str, tuple[Path, ...]] = {}
    ignored, empty = len(loose) - len(images), []
    for entry in visible:
        if _is_folder(entry):
            found, skipped = images_below(Path(entry.path))
            ignored += skipped
            if found:
                classes[entry.name] = found
            else:
                empty.append(entry.name)
    folders, files = tuple(classes), tuple(classes.values())
    if classes:
        ignored += len(images)
    else:
        files = (tuple(images),)
    listing = FolderListing(path, folders, files, ignored, empty=tuple(empty))
    _check(listing)
    return listing


def _scan_table(path: Path) -> FolderListing:
    rows = read_table(path)
    known: dict[str, str | None] = {}
    classes: dict[str, list[Path]] = {}
    for file, label in rows:
        place = os.path.normpath(file)
        if place not in known:
            classes.setdefault("" if label is None else label, []).append(file)
        elif known[place] != label:
            raise DataError(f"{path}: {file} stands under '{known[place]}' and under '{label}'")
        known[place] = label
    names = sorted(classes)
    files = tuple(tuple(classes[name]) for name in names)
    folders = () if names in ([], [""]) else tuple(names)
    listing = FolderListing(path.parent, folders, files, repeated=len(rows) - len(known))
    _check(listing)
    return listing


def _unnamed(folder: Path, listing: FolderListing) -> int:
    real = lru_cache(maxsize=None)(os.path.realpath)

    def place(file: Path) -> tuple[str, str]:  # a table may spell a folder in its own way
        return real(file.parent), file.name

    named = {place(file) for files in listing.files for file in files}
    return sum(place(file) not in named for file in images_below(folder)[0])


def looks_like_splits(folders: Sequence[str]) -> str | None:
    """The sub-folder that was probably meant, where the folders are splits and not classes."""
    splits = [name for name in folders if name.lower() in _SPLIT_NAMES]
    return splits[0] if splits and len(splits) == len(folders) else None


def _check(listing: FolderListing) -> None:
    if len(listing) == 0:
        raise DataError(
            f"{listing.root} holds no images; expected one folder per class with files such as "
            f"{', '.join(IMAGE_SUFFIXES[:3])}"
        )
    if len(listing) < MIN_IMAGES:
        raise DataError(
            f"{listing.root} holds a single image; at least {MIN_IMAGES} are needed, and some "
            "hundred for a useful result"
        )


def images_below(folder: Path) -> tuple[tuple[Path, ...], int]:
    """Images of a folder and all below, sorted folder by folder; and how many files are none.

    Raises:
        DataError: a folder cannot be read.
    """
    found: list[Path] = []
    skipped = 0

    def unreadable(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error

    for parent, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        skipped += sum(Path(parent, name).is_symlink() for name in folders)  # not followed
        for name in sorted(names):
            if name.startswith("."):  # also the `._name.jpg` that macOS leaves behind
                continue
            file = Path(parent, name)
            if _is_image(file):
                found.append(file)
            else:
                skipped += 1
    return tuple(found), skipped


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _first(names: Sequence[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
