"""Finished parts of a search on disk, so that a killed run goes on where it stopped.

A part is one small file named by the hash of everything that decides it: weights, images, seed,
options, and the code that computes it. A file is written whole or not at all; one that cannot be
read is computed anew.
"""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

import regcache_export
from regcache_engines.files import atomic_write_bytes

from ..errors import ConfigError
from .count import Work

log = logging.getLogger(__name__)

SCHEMA = 1

CODE = (
    "data/alterations.py",
    "data/copies.py",
    "data/images.py",
    "encoders/canonical.py",
    "encoders/merging.py",
    "encoders/regcache.py",
    "encoders/rotary.py",
    "encoders/stem.py",
    "encoders/watching.py",
    "evaluation/corners.py",
    "evaluation/image_sets.py",
    "evaluation/instances.py",
    "evaluation/metrics.py",
    "evaluation/objective.py",
    "quantization/**/*.py",
    "search/clipping.py",
    "search/cost.py",
    "search/embedder.py",
    "search/evaluator.py",
    "search/graph_cost.py",
    "search/problem.py",
    "search/question.py",
    "search/register/*.py",
    "search/sensitivity.py",
    "search/sharing.py",
    "search/spill.py",
    "search/states.py",
    "search/stopping.py",
    "search/token_norms.py",
    "work/devices.py",
    "work/gathered.py",
)
"""What a cached part depends on, as patterns below the package. What only decides what to ask next
(`race.py`, `statistics.py`) changes no answer."""

EXPORT_CODE = (
    "passes/*.py",
    "checks/fusion.py",
    "fold_names.py",
    "merge.py",
    "plan.py",
    "published_quant.py",
    "regcache_config.py",
    "spec.py",
    "stem.py",
    "tensor_quant.py",
    "treated.py",
)
"""The same below `regcache_export`: quantizers apply its exact folds before they calibrate."""


@dataclass(frozen=True)
class Part:
    """One finished part.

    Attributes:
        tensors: its outcome.
        work: block-forwards that it took.
    """

    tensors: dict[str, Tensor]
    work: int


class PartCache:
    """Parts of runs with one identity; without a folder nothing is kept.

    Args:
        folder: where the files go; made when the first one is written.
        identity: everything that decides all parts: hashes, seed, options. JSON values.
        work: counts what a part took, also where it was found finished.
    """

    def __init__(self, folder: Path | None, identity: dict[str, Any], work: Work) -> None:
        self.folder, self.work = folder, work
        self.identity = _digest({"schema": SCHEMA, "code": code_hash(), **identity})
        self._said: list[Path] = []  # shared by `counting`, so that a run says it once

    def counting(self, work: Work) -> PartCache:
        """The same parts for another search, which counts its own work."""
        other = copy.copy(self)
        other.work = work
        return other

    def part(
        self, name: str, compute: Callable[[], dict[str, Tensor]], **key: Any
    ) -> dict[str, Tensor]:
        """The part's tensors, on the CPU: read, or computed and written.

        Args:
            name: what it is, for the file name.
            compute: called where the part is not there; counts into `work` what it runs.
            key: what decides this part beside the identity. JSON values.

        Raises:
            ConfigError: the disk is full or the folder not writable; everything finished so far
                stays, and the same command goes on from it.
        """
        found = self.find(name, **key)
        if found is not None:
            return found
        before = self.work.block_forwards
        tensors = {name: value.cpu() for name, value in compute().items()}
        self.keep(name, tensors, self.work.block_forwards - before, **key)
        return tensors

    def find(self, name: str, **key: Any) -> dict[str, Tensor] | None:
        """A finished part's tensors, its work counted as resumed; None where there is none."""
        path = self._path(name, key)
        found = None if path is None else _read(path)
        if found is None:
            return None
        self.work.add(found.work, resumed=True)
        if not self._said:
            assert path is not None
            self._said.append(path.parent)
            log.info("going on from what is finished in %s", path.parent)
        return found.tensors

    def has(self, name: str, **key: Any) -> bool:
        """Whether there is such a file; nothing is counted."""
        path = self._path(name, key)
        return path is not None and path.exists()

    def keep(self, name: str, tensors: dict[str, Tensor], work: int, **key: Any) -> None:
        """Write what was computed elsewhere, with the block-forwards that it took.

        Raises:
            ConfigError: as `part`.
        """
        path = self._path(name, key)
        if path is not None:
            _write(path, Part(tensors, work))

    def _path(self, name: str, key: dict[str, Any]) -> Path | None:
        if self.folder is None:
            return None
        digest = _digest({"identity": self.identity, "name": name, **key})
        return self.folder / f"{name}-{digest[:32]}.safetensors"


def rows_key(rows: Tensor) -> str:
    """Hash of image indices, for a part's key."""
    return hashlib.sha256(rows.to(torch.int64).numpy().tobytes()).hexdigest()[:16]


@lru_cache(maxsize=1)
def code_hash() -> str:
    """SHA-256 over the source of everything in `CODE` and `EXPORT_CODE`, and torch's version."""
    digest = hashlib.sha256(torch.__version__.encode())
    packages = (
        (Path(__file__).parents[1], CODE),
        (Path(regcache_export.__file__).parent, EXPORT_CODE),
    )
    for package, patterns in packages:
        for file in sorted(_matching(package, patterns)):
            digest.update(str(file.relative_to(package)).encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _matching(package: Path, patterns: Iterable[str]) -> set[Path]:
    return {file for pattern in patterns for file in package.glob(pattern)}


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> Part | None:
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return Part(tensors, int((file.metadata() or {})["work"]))
    except FileNotFoundError:
        return None
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        log.warning("%s cannot be read (%s); its part is computed anew", path.name, error)
        return None


def _write(path: Path, part: Part) -> None:
    data = safetensors.torch.save(
        # copies: an objective may hand the same tensor over under two names
        {name: value.clone().contiguous() for name, value in part.tensors.items()},
        {"work": str(part.work)},
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(path, data)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        raise ConfigError(
            f"cannot keep the search's progress in {path.parent}: {error.strerror}; free space "
            "and run the same command again, it goes on from here"
        ) from error
