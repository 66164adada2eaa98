"""Image files that a table names: a list, or the metadata of Hugging Face's image folders.

LIST.txt                  a path a line, and behind a tab its class; relative to the list
DIR/metadata.csv, .jsonl  `file_name` (relative to DIR) and, where there is one, `label`
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from regcache_engines.documents import parse_json

from ..errors import DataError

LISTS = (".txt", ".lst", ".tsv")
METADATA = ("metadata.csv", "metadata.jsonl")
FILE, LABEL = "file_name", "label"

Row = tuple[Path, str | None]
"""A file and the name of its class, or None."""


def is_list(path: Path) -> bool:
    """Whether a path is a list of image files."""
    return path.suffix.lower() in LISTS and path.is_file()


def metadata_of(folder: Path) -> Path | None:
    """The table of an image folder, or None."""
    return next((folder / name for name in METADATA if (folder / name).is_file()), None)


def read_table(path: Path) -> list[Row]:
    """Rows of a list or of metadata, in order.

    Raises:
        DataError: it cannot be read, has no column of files, a name that no file can have, or only
            some rows have a class.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # Excel writes a mark in front
            rows = [(_place(path, name), label) for name, label in _rows(path, file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"the table {path} cannot be read: {error}") from error
    named = sum(label is not None for _, label in rows)
    if 0 < named < len(rows):
        raise DataError(f"{path}: {named} of {len(rows)} rows have a class; give all of them one")
    return rows


def check_inside(name: str, root: Path, source: Path) -> None:
    """Raise DataError where a file that came with a data set names an image outside of its folder.

    Images travel in bundles: a data set of somebody else's must not choose them from a whole disk.
    """
    if ".." not in name and not os.path.isabs(name):
        return  # of a million lines, nearly all
    if not _is_inside(root.absolute() / name, root.absolute()):
        advice = "; a list of your own (LIST.txt) may name any file"  # of captions there is none
        raise DataError(
            f"{source} names {name!r}, which is outside of its data set"
            f"{advice if source.name in METADATA else ''}"
        )


def _is_inside(place: Path, folder: Path) -> bool:
    """As it is spelled, for links in the folder; or as it is, for a folder behind a link."""
    if Path(os.path.normpath(place)).is_relative_to(os.path.normpath(folder)):
        return True
    try:
        return Path(os.path.realpath(place)).is_relative_to(os.path.realpath(folder))
    except ValueError:  # a name that no file can have
        return False


def _place(path: Path, name: str) -> Path:
    try:
        if b"\0" not in os.fsencode(name):
            return path.parent / name
    except UnicodeEncodeError:  # half of a character from two, by JSON's escapes
        pass
    raise DataError(f"{path} names the file {name!r}, and no file can have that name")


def _rows(path: Path, lines: Iterator[str]) -> Iterator[tuple[str, str | None]]:
    if path.suffix.lower() in LISTS:
        for line in lines:
            name, _, label = line.rstrip("\r\n").partition("\t")
            if name.strip():
                yield name.strip(), label.strip() or None
    elif path.suffix == ".csv":
        for row in csv.DictReader(lines):
            yield _row(path, row)
    else:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                found = parse_json(line)
            except ValueError as error:
                raise DataError(f"{path}: line {number} is no JSON: {error}") from error
            yield _row(path, found if isinstance(found, dict) else {})


def _row(path: Path, row: Mapping[str, object]) -> tuple[str, str | None]:
    name, label = row.get(FILE), row.get(LABEL)
    if not isinstance(name, str) or not name:
        raise DataError(f"{path} has no column '{FILE}', or a row without it")
    check_inside(name, path.parent, path)
    return name, None if label is None or label == "" else str(label)
