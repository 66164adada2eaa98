"""Embeddings on disk in the layout of clip-retrieval, which autofaiss and clip-retrieval read.

    img_emb/img_emb_N.npy     float16 [n, E], L2-normalized
    metadata/metadata_N.parquet   image_path and, from shards, caption; row i is that of row i
    stats/N.json              times and counts, the unreadable images; written last
    job.json                  what was embedded with what, so that no other job mixes with it

A part is there as a whole or not at all: every file is written under a temporary name and renamed,
and a part counts once its `stats/N.json` is there, and as long as the other two are.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from regcache_engines.engine import MIN_NORM
from regcache_engines.files import atomic_write_bytes

from ..compat import require
from ..errors import ConfigError, DataError

FORMATS = ("parquet", "jsonl")
SCHEMA = 1

Column = Sequence[str | None]


@dataclass(frozen=True)
class EmbeddingFolder:
    """A result folder.

    Attributes:
        path: the folder.
        digits: width of a part's number in names.
        form: of the metadata: `parquet` (needs pyarrow), or `jsonl`, one object a line.
    """

    path: Path
    digits: int
    form: str = "parquet"

    def begin(self, job: Mapping[str, Any]) -> None:
        """Make the folders; the job is written down, or is the one that was.

        Raises:
            ConfigError: the folder holds the embeddings of another job.
        """
        for name in ("img_emb", "metadata", "stats"):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        place = self.path / "job.json"
        wanted = {"schema": SCHEMA, "metadata": self.form, **job}
        if not place.exists():
            atomic_write_bytes(place, json.dumps(wanted, indent=1).encode())
            return
        try:
            found = json.loads(place.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{place} cannot be read: {error}; take another --output") from error
        if not isinstance(found, dict):
            raise DataError(f"{place} is no job; take another --output")
        other = [name for name in wanted if found.get(name) != wanted[name]]
        if other and all(_is_unsaid(found.get(name), wanted[name]) for name in other):
            more = ", ".join(f'"{name}": {json.dumps(wanted[name])}' for name in other)
            raise ConfigError(
                f"{place}, of an older release, does not say with which {' and '.join(other)} it "
                f"began; if with these, put {more} into it to go on, or take another --output"
            )
        if other:
            raise ConfigError(
                f"{self.path} holds embeddings of another job (other: {', '.join(other)}); take "
                "another --output, or the same options to go on"
            )

    def finished(self, number: int) -> dict[str, Any] | None:
        """The stats of a part whose files are all there, or None, also where they are not ours."""
        try:
            found = json.loads(self._stats(number).read_text(encoding="utf-8"))
            whole = isinstance(found["sample_count"], int)
            rows = [(row["image_path"], row["reason"]) for row in found["unreadable"]]
            whole &= all(isinstance(text, str) for row in rows for text in row)
        except (OSError, ValueError, LookupError, TypeError):
            return None
        return found if whole and all(path.is_file() for path in self._files(number)) else None

    def write(
        self,
        number: int,
        rows: npt.NDArray[np.float32],
        columns: Mapping[str, Column],
        stats: Mapping[str, Any],
    ) -> None:
        """Write one part.

        Args:
            rows: `[n, E]`; normalized here, in float32.
            columns: name -> n values.
            stats: JSON values.
        """
        lengths = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), MIN_NORM)
        array = io.BytesIO()
        np.save(array, (rows / lengths).astype(np.float16))
        embeddings, table = self._files(number)
        atomic_write_bytes(embeddings, array.getvalue())
        atomic_write_bytes(table, _table(columns, self.form))
        atomic_write_bytes(self._stats(number), json.dumps(stats, indent=1).encode())

    def _files(self, number: int) -> tuple[Path, Path]:
        """Embeddings and metadata."""
        name = f"{number:0{self.digits}d}"
        table = f"metadata/metadata_{name}.{self.form}"
        return self.path / f"img_emb/img_emb_{name}.npy", self.path / table

    def _stats(self, number: int) -> Path:
        return self.path / f"stats/{number:0{self.digits}d}.json"


def check_format(form: str) -> None:
    """Raise ConfigError for an unknown format, or where what it needs is not installed."""
    if form not in FORMATS:
        raise ConfigError(f"--metadata {form}: take one of {', '.join(FORMATS)}")
    if form == "parquet":
        try:
            require("pyarrow.parquet", "embed")
        except ConfigError as error:
            raise ConfigError(f"{error}, or take --metadata jsonl") from error


def _table(columns: Mapping[str, Column], form: str) -> bytes:
    if form == "jsonl":
        names = list(columns)
        rows = zip(*columns.values(), strict=True)
        lines = (json.dumps(dict(zip(names, row, strict=True))) for row in rows)
        return "".join(line + "\n" for line in lines).encode()
    import pyarrow
    from pyarrow import parquet

    buffer = io.BytesIO()
    arrays = {
        name: pyarrow.array([_as_utf8(value) for value in values], pyarrow.string())
        for name, values in columns.items()
    }
    table = pyarrow.table(arrays)
    parquet.write_table(table, buffer)
    return buffer.getvalue()


def _as_utf8(text: str | None) -> str | None:
    r"""A file name may be no UTF-8: its other bytes, as in JSON, `\udce9` for the byte E9."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()


def _is_unsaid(found: Any, wanted: Any) -> bool:
    """Whether what was written down is a part of what is wanted."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        return found.items() <= wanted.items()
    return found is None


@dataclass
class Gathered:
    """Rows of a part, as they come.

    Attributes:
        rows: embeddings, batch by batch.
        paths, captions: of the rows.
        unreadable: `image_path` and `reason` of images without a row.
    """

    rows: list[npt.NDArray[np.float32]] = field(default_factory=list, repr=False)
    paths: list[str] = field(default_factory=list, repr=False)
    captions: list[str | None] = field(default_factory=list, repr=False)
    unreadable: list[dict[str, str]] = field(default_factory=list)

    def columns(self) -> dict[str, Column]:
        """Of the metadata: captions only where there are any."""
        found: dict[str, Column] = {"image_path": self.paths}
        if any(caption is not None for caption in self.captions):
            found["caption"] = self.captions
        return found
