"""webdataset shards: tar files whose members share a key, `000123.jpg` and `000123.cls`.

Read with the standard library's tarfile in one pass and in order. A shard that was cut is an
error, never a smaller data set: webdataset 1.0.2 with `reraise_exception` gives 6 of 10 samples of
a shard that ends between two of them, without a word, and half a sample where it ends inside one.
"""

from __future__ import annotations

import heapq
import os
import random
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regcache_engines.documents import read_document

from ..errors import DataError
from .scan import IMAGE_SUFFIXES

SUFFIXES = (".tar", ".tar.gz", ".tgz")

MAX_SHARDS = 100_000
"""LAION-5B has a few times as many, in folders."""

MOST_DRAWN_FROM = 200_000
"""Samples whose place is looked up for a draw of no more."""

LABEL, CAPTION = "cls", "txt"
PARTS = (*IMAGE_SUFFIXES, f".{LABEL}", f".{CAPTION}")
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass
class Sample:
    """Members of one key: suffix (in lower case, without its dot) -> bytes."""

    key: str
    members: dict[str, bytes] = field(default_factory=dict, repr=False)

    @property
    def image(self) -> bytes | None:
        for suffix in IMAGE_SUFFIXES:
            if suffix[1:] in self.members:
                return self.members[suffix[1:]]
        return None


def is_shards(text: str) -> bool:
    """Whether a path names shards: a tar file, a brace pattern, or a folder of tar files."""
    path = Path(text)
    return bool(_tars(path)) if path.is_dir() else text.endswith(SUFFIXES)


def expand(text: str) -> list[Path]:
    """Files of `DIR`, `name.tar` or `name-{000..012}.tar`, in order.

    Raises:
        DataError: a file of the pattern is missing, or the folder holds no tar file, or images
            beside them.
    """
    path = Path(text)
    if path.is_dir():
        found = _tars(path)
        if not found:
            raise DataError(f"{path} holds no shards (*.tar)")
        if image := _first_image(path):
            raise DataError(
                f"{path} holds shards ({found[0].name}) and images ({image}); name the shards "
                f"({path}/NAME.tar), or move them out of the folder of images"
            )
        return found
    names = braces(text)
    missing = [name for name in names if not Path(name).is_file()]
    if missing or not names:
        raise DataError(
            f"{len(missing)} of {len(names)} shards are missing, the first is "
            f"{missing[0] if missing else text}"
        )
    return [Path(name) for name in names]


def braces(text: str) -> list[str]:
    """`name-{000..012}.tar` -> the 13 names; any other text is one name.

    Raises:
        DataError: more than `MAX_SHARDS` names, or none.
    """
    match = BRACES.search(text)
    if not match:
        return [text]
    low, high = match[1], match[2]
    if len(high) > 9 or int(high) - int(low) >= MAX_SHARDS:
        raise DataError(f"{text:.200} names more than {MAX_SHARDS} shards")
    if int(high) < int(low):
        raise DataError(f"{text:.200} names no shard: {high} is less than {low}")
    return [
        f"{text[: match.start()]}{number:0{len(low)}d}{text[match.end() :]}"
        for number in range(int(low), int(high) + 1)
    ]


def samples(shards: Sequence[Path]) -> Iterator[Sample]:
    """Samples of all shards, in order.

    Raises:
        DataError: a shard is cut or damaged; the message says where.
    """
    for shard in shards:
        yield from read_samples(shard)


def is_compressed(shard: Path) -> bool:
    """Whether a sample can only be reached through all before it."""
    return not shard.name.endswith(".tar")


@dataclass(frozen=True)
class Draw:
    """What was drawn from shards.

    Attributes:
        places: shard and place of every sample, for `read_at`.
        looked: how many shards were looked into.
        imageless: samples in them without an image, which are not drawn: a README, for example.
    """

    places: list[tuple[Path, int]]
    looked: int
    imageless: int


def draw(shards: Sequence[Path], count: int, seed: int) -> Draw:
    """At most `count` samples of uncompressed shards, each as likely, in an order drawn by `seed`.

    Headers alone are read, of all shards, or of so many, drawn as well, that there are
    `MOST_DRAWN_FROM` samples, or `count` where that is more. Up to there a smaller `count` gives
    the front part of a larger one.

    Raises:
        DataError: a shard is cut or damaged; the message says where.
    """
    source, enough = random.Random(seed), max(count, MOST_DRAWN_FROM)
    looked = imageless = 0

    def candidates() -> Iterator[tuple[float, int, int]]:
        nonlocal looked, imageless
        seen = 0
        for index in source.sample(range(len(shards)), len(shards)):
            if seen >= enough:
                return
            looked += 1
            for place, has_image in _places(shards[index]):
                seen, imageless = seen + has_image, imageless + (not has_image)
                if has_image:
                    yield source.random(), index, place

    chosen = heapq.nsmallest(count, candidates())
    return Draw([(shards[index], place) for _, index, place in chosen], looked, imageless)


def read_at(shard: Path, place: int) -> Sample:
    """The sample that begins at byte `place`.

    Raises:
        DataError: it is not there, or the shard is damaged.
    """
    try:
        with shard.open("rb") as file:
            file.seek(place)
            for sample in read_samples(str(shard), file):
                return sample
    except OSError as error:
        raise DataError(f"the shard {shard} cannot be read: {error.strerror}") from error
    raise DataError(f"the shard {shard} was changed while it was read")


def read_classes(text: str) -> tuple[str, ...] | None:
    """Class names beside the shards: `classnames.txt`, one a line, as clip_benchmark keeps them."""
    path = Path(text)
    folder = path if path.is_dir() else path.parent
    for place in (folder, folder.parent):
        file = place / "classnames.txt"
        if file.is_file():
            return _names_of(file)
    return None


def _names_of(file: Path) -> tuple[str, ...]:
    """Line N is the name of label N, so that no line but the last ones may be empty."""
    try:
        lines = [line.strip() for line in read_document(file).split("\n")]
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as UTF-8 text: {error}") from error
    while lines and not lines[-1]:
        lines.pop()
    if "" in lines:
        raise DataError(
            f"{file}: line {lines.index('') + 1} is empty, and a line's number is its label; "
            "write the name of that class"
        )
    return tuple(lines)


def label_of(sample: Sample, shard_source: str, classes: int) -> int:
    """The class index in `.cls`.

    Raises:
        DataError: there is none, or it is out of range.
    """
    text = sample.members.get(LABEL)
    try:
        label = int(text) if text is not None else -1
    except ValueError:
        label = -1
    if not 0 <= label < classes:
        found = "no .cls file" if text is None else f"label {text[:20]!r}"
        raise DataError(
            f"{shard_source}: sample {sample.key} has {found}; expected 0 to {classes - 1}"
        )
    return label


def _tars(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.name.endswith(SUFFIXES) and p.is_file())


def _first_image(folder: Path) -> str | None:
    """Of a folder and all below."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                return os.path.relpath(os.path.join(parent, name), folder)
    return None


def read_samples(shard: Path | str, file: Any = None) -> Iterator[Sample]:
    """Samples of one shard, in order.

    Args:
        shard: a file, or the name of what `file` reads, which the caller sees to the end of.

    Raises:
        DataError: it is cut or damaged; the message says where.
    """
    current, count = Sample(""), 0
    try:
        if isinstance(shard, Path):
            _check_closed(shard)
        place = shard if file is None else None
        with tarfile.open(place, "r|*", fileobj=file) as archive:
            for member in archive:
                if (name := _name_of(member)) is None:
                    continue
                key, suffix = name
                if key != current.key:
                    if current.members:
                        count += 1
                        yield current
                    current = Sample(key)
                if suffix in current.members:
                    raise ValueError(f"{member.name} is there twice")
                data = archive.extractfile(member)
                current.members[suffix] = data.read() if data is not None else b""
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise _damaged(shard, count, error) from error
    if current.members:
        yield current


def _places(shard: Path) -> Iterator[tuple[int, bool]]:
    """Where each sample of an uncompressed shard begins, and whether it has an image.

    Headers alone are read.
    """
    current, count, place, has_image = "", 0, 0, False
    try:
        _check_closed(shard)
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                archive.members.clear()  # type: ignore[attr-defined]  # it keeps them all
                if (name := _name_of(member)) is None:
                    continue
                key, suffix = name
                if key != current:
                    if count:
                        yield place, has_image
                    current, count, place, has_image = key, count + 1, member.offset, False
                has_image |= f".{suffix}" in IMAGE_SUFFIXES
        if count:
            yield place, has_image
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise _damaged(shard, count, error) from error


def _name_of(member: tarfile.TarInfo) -> tuple[str, str] | None:
    """Key and suffix of a member; None where it belongs to no sample.

    Raises:
        ValueError: a link in place of a part of a sample: a stream is past its file.
    """
    folder, _, name = member.name.rpartition("/")
    stem, _, suffix = name.partition(".")
    suffix = suffix.lower()
    if name.startswith("."):
        return None
    if (member.islnk() or member.issym()) and f".{suffix}" in PARTS:
        raise ValueError(
            f"{member.name} is a link to {member.linkname}; pack with tar's -h --hard-dereference"
        )
    return (f"{folder}/{stem}" if folder else stem, suffix) if member.isfile() else None


def _damaged(shard: Path | str, count: int, error: Exception) -> DataError:
    return DataError(
        f"the shard {shard} is damaged after {count} samples ({error}); make or copy it again"
    )


def _check_closed(shard: Path) -> None:
    """A whole tar file ends in two blocks of zeros; tarfile itself takes their lack for an end."""
    if is_compressed(shard):
        return
    size = shard.stat().st_size
    if size >= 1024 and size % 512 == 0:
        with shard.open("rb") as file:
            file.seek(-1024, 2)
            if not any(file.read()):
                return
    raise DataError(
        f"the shard {shard} is cut: it lacks the two empty blocks at its end; copy it again"
    )
