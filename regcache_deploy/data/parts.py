"""A large collection of images, cut into parts that are embedded one by one.

The cut depends on the collection alone, not on who embeds which part: so any number of processes
on any machines share the work, and a run that goes on knows what is finished.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ..compat import require
from ..errors import DataError
from .scan import images_below
from .shards import BRACES, CAPTION, SUFFIXES, Sample, braces, expand, is_shards, read_samples
from .tables import is_list, read_table

REMOTE = "://"


@dataclass(frozen=True)
class Picture:
    """One image that is not decoded yet.

    Attributes:
        path: for the metadata: a file's path, or `SHARD/KEY`.
        source: the file, or its bytes; None where a sample of a shard holds no image.
        caption: of a shard's `.txt`, or None.
    """

    path: str
    source: Path | bytes | None = field(repr=False)
    caption: str | None = None


@dataclass(frozen=True)
class Part:
    """Images that are embedded, written and resumed together.

    Attributes:
        number: from 0 on, in the order of the collection.
        files: paths of images, or one shard.
        is_shard: which of the two.
    """

    number: int
    files: tuple[str, ...] = field(repr=False)
    is_shard: bool = False

    def pictures(self) -> Iterator[Picture]:
        """The images, in order.

        Raises:
            DataError: a shard is missing, cut or damaged.
        """
        if not self.is_shard:
            for file in self.files:
                yield Picture(file, Path(file))
            return
        (shard,) = self.files
        for sample in _samples(shard):
            caption = sample.members.get(CAPTION)
            text = None if caption is None else caption.decode("utf-8", errors="replace")
            yield Picture(f"{shard}/{sample.key}", sample.image, text)


@dataclass(frozen=True)
class Collection:
    """All parts.

    Attributes:
        source: as the user named it.
        parts: in order.
        images: how many; None for shards, which are not opened for it.
        ignored: files of a folder that are no images by their suffix, and linked folders in it.
    """

    source: str
    parts: tuple[Part, ...] = field(repr=False)
    images: int | None
    ignored: int = 0

    def digest(self) -> str:
        """SHA-256 of the cut: names and their order, not the images' bytes."""
        digest = hashlib.sha256()
        for part in self.parts:
            digest.update(b"\0part\0" + "\0".join(part.files).encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def open_collection(text: str, part_images: int) -> Collection:
    """Find the images and cut them.

    Args:
        text: a folder of images, searched to any depth; a list of files (`LIST.txt`, one path a
            line, relative to the list); shards (`DIR`, `x.tar`, `x-{000..012}.tar`), also as URLs
            of fsspec (`s3://BUCKET/{00000..00099}.tar`, or a folder of them).
        part_images: images of one part; a shard is a part whatever it holds.

    Raises:
        DataError: there is nothing, or a file of a list or a pattern is missing.
        ConfigError: a URL without fsspec.
    """
    if REMOTE in text or is_shards(text) or (BRACES.search(text) and not Path(text).exists()):
        shards = _remote_shards(text) if REMOTE in text else [str(p) for p in expand(text)]
        return Collection(text, tuple(Part(i, (s,), True) for i, s in enumerate(shards)), None)
    path, ignored = Path(text), 0
    if is_list(path):
        files = [str(file) for file, _ in read_table(path)]
    elif path.is_dir():
        found, ignored = images_below(path)
        files = [str(file) for file in found]
    else:
        raise DataError(f"{text}: no folder, list (.txt) or shard (.tar) is there; check the path")
    if not files:
        raise DataError(f"{text} holds no images")
    starts = range(0, len(files), part_images)
    parts = (tuple(files[start : start + part_images]) for start in starts)
    cut = tuple(Part(i, each) for i, each in enumerate(parts))
    return Collection(text, cut, len(files), ignored)


def _remote_shards(text: str) -> list[str]:
    if BRACES.search(text) or text.endswith(SUFFIXES):
        return braces(text)
    fsspec = require("fsspec", "embed")
    try:
        system, folder = fsspec.core.url_to_fs(text)
        found = sorted(str(name) for name in system.ls(folder, detail=False))
    except Exception as error:  # every file system of fsspec has errors of its own
        raise DataError(f"{text} cannot be listed: {error}") from error
    shards = [system.unstrip_protocol(name) for name in found if name.endswith(SUFFIXES)]
    if not shards:
        raise DataError(f"{text} holds no shards (*.tar)")
    return shards


def _samples(shard: str) -> Iterator[Sample]:
    if REMOTE not in shard:
        yield from read_samples(Path(shard))
        return
    fsspec = require("fsspec", "embed")
    with closing(_Opened(lambda: fsspec.open(shard, "rb").open(), shard)) as file:
        yield from read_samples(shard, file)
        if shard.endswith(".tar") and not file.is_closed_archive():
            raise DataError(
                f"the shard {shard} is cut: it lacks the two empty blocks at its end; copy it again"
            )


class _Opened(io.RawIOBase):
    """A remote file that is read once, forwards, and remembers its end."""

    def __init__(self, opened: Callable[[], BinaryIO], name: str) -> None:
        try:
            self._file = opened()
        except Exception as error:  # every file system of fsspec has errors of its own
            raise DataError(f"the shard {name} cannot be opened: {error}") from error
        self._name, self._size, self._tail = name, 0, b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        try:
            data = self._file.read(size)
        except Exception as error:
            raise DataError(f"the shard {self._name} cannot be read: {error}") from error
        self._size += len(data)
        self._tail = (self._tail + data[-1024:])[-1024:]
        return data

    def is_closed_archive(self) -> bool:
        """A whole tar file ends in two blocks of zeros."""
        while self.read(1 << 20):
            pass
        whole = self._size >= 1024 and self._size % tarfile.BLOCKSIZE == 0
        return whole and not any(self._tail)

    def close(self) -> None:
        self._file.close()
        super().close()


def of_partition(parts: Sequence[Part], index: int, count: int) -> list[Part]:
    """Every `count`-th part, from the one with the number `index` on: as clip-retrieval shares."""
    return [part for part in parts if part.number % count == index]


def digits(parts: Sequence[Any]) -> int:
    """Width of a part's number in file names, so that their order is that of the parts."""
    return len(str(max(len(parts) - 1, 0)))
