"""Embed one part of a collection: decoded in processes -> engine -> its files. No torch."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from regcache_engines.bundle import PREPROCESS, Bundle
from regcache_engines.container import usable_cpus, within_cpu_limit
from regcache_engines.preprocess import Preprocess

from ..data.decoders import Decoders
from ..data.embedding_files import EmbeddingFolder, Gathered
from ..data.parts import REMOTE, Part
from ..errors import DataError
from ..evaluation.engines import open_engine
from ..work.progress import Advance

if TYPE_CHECKING:
    import torch

    from ..work.workers import Place

Stats = dict[str, Any]
"""Of a part, in clip-retrieval's words."""


@dataclass(frozen=True)
class EmbedOptions:
    """Options of `regcache embed`.

    Attributes:
        bundle: folder NAME.regcache.
        data: as `open_collection` takes it.
        output: result folder.
        partition: i and n: every n-th part, from part i on.
        part_images: images of one part of a folder or a list.
        metadata: `parquet` or `jsonl`.
        engine: as `open_engine` names it.
        batch_size, threads: of the engine.
        decoders: processes that decode, for each engine; 0 takes one a core.
        workers: as `open_team` takes it: each has an engine and writes whole parts. They see the
            bundle, the data and the output under the same paths.
    """

    bundle: Path
    data: str
    output: Path
    partition: tuple[int, int] = (0, 1)
    part_images: int = 10_000
    metadata: str = "parquet"
    engine: str = "onnxruntime"
    batch_size: int = 32
    threads: int | None = None
    decoders: int = 0
    workers: str | None = None


@dataclass
class _Clock:
    """Seconds that a part spent waiting for pixels, and in the engine."""

    read: float = 0.0
    inference: float = 0.0


class PartEmbedder:
    """An engine and the processes that decode for it. Use it as a context manager.

    Raises:
        EngineError: the bundle does not run.
    """

    def __init__(
        self,
        options: EmbedOptions,
        bundle: Bundle,
        folder: EmbeddingFolder,
        threads: int | None,
        decoders: int,
    ) -> None:
        self._batch_size, self._folder = options.batch_size, folder
        self._preprocess = Preprocess(bundle.preprocess)
        with ExitStack() as stack:
            engine = open_engine(options.engine, bundle, threads, (1, options.batch_size))
            self._engine = stack.enter_context(engine)
            self._decoders = stack.enter_context(Decoders(bundle.preprocess, decoders))
            self._stack = stack.pop_all()

    def __enter__(self) -> PartEmbedder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def write(self, part: Part, advance: Advance) -> Stats:
        """Embed a part and write its files.

        Raises:
            DataError: a damaged shard, or not a single readable image.
        """
        began, ticks, clock = time.time(), time.monotonic(), _Clock()
        found = self._gather(part, clock, advance)
        if not found.paths:
            raise DataError(_nothing(part, found))
        rows, writing = np.concatenate(found.rows), time.time()
        took = time.monotonic() - ticks  # a clock that is set meanwhile may step back
        stats = {
            "start_time": began,
            "end_time": writing,
            "read_duration": clock.read,
            "inference_duration": clock.inference,
            "total_duration": took,
            "sample_count": len(found.paths),
            "unreadable": found.unreadable,
        }
        self._folder.write(part.number, rows, found.columns(), stats)
        return stats

    def _gather(self, part: Part, clock: _Clock, advance: Advance) -> Gathered:
        found, asked, engine = Gathered(), time.monotonic(), self._engine
        batches = self._decoders.batches(part.pictures(), self._batch_size)
        for batch, (pixels, reasons) in batches:
            got = time.monotonic()
            if len(pixels):
                found.rows.append(engine.infer(self._preprocess.in_layout(pixels, engine.pixels)))
            for index, picture in enumerate(batch):
                if index in reasons:
                    row = {"image_path": picture.path, "reason": reasons[index]}
                    found.unreadable.append(row)
                else:
                    found.paths.append(picture.path)
                    found.captions.append(picture.caption)
            clock.read += got - asked
            asked = time.monotonic()
            clock.inference += asked - got
            advance(len(batch))
        return found


@dataclass(frozen=True)
class PartStation:
    """What a worker embeds parts with.

    Attributes:
        hashes: of the bundle, as the driver read it.
        working_folder: of the driver, which relative paths count from.
    """

    options: EmbedOptions
    folder: EmbeddingFolder
    hashes: Mapping[str, str]
    working_folder: Path

    def to(self, device: torch.device) -> PartStation:
        """Itself: it has no tensors."""
        return self

    @property
    def _relative(self) -> list[str]:
        paths = (str(self.options.bundle), str(self.folder.path), self.options.data)
        return [path for path in paths if REMOTE not in path and not Path(path).is_absolute()]

    def open(self, place: Place) -> Callable[[Part], Stats]:
        """What embeds a part, at that place; the engine stays open as long as the process.

        Raises:
            DataError: a relative path, and this machine does not have the driver's folder; or
                another bundle is at the path.
        """
        try:
            os.chdir(self.working_folder)
        except OSError as error:
            if self._relative:
                raise DataError(
                    f"a worker has no folder {self.working_folder} ({error.strerror}), where "
                    f"{self._relative[0]} would be; pass absolute paths that all machines share"
                ) from error
        cores = max(1, int(within_cpu_limit(usable_cpus()) * place.share))
        options, bundle = self.options, Bundle.open(self.options.bundle)
        if hashes_of(bundle) != self.hashes:
            raise DataError(f"{options.bundle} is another bundle on a worker's machine")
        threads = options.threads or cores
        embedder = PartEmbedder(options, bundle, self.folder, threads, options.decoders or cores)
        return lambda part: embedder.write(part, lambda count: None)


def hashes_of(bundle: Bundle) -> dict[str, str]:
    """SHA-256 of what decides an embedding, by file name: the graphs and the preprocessing."""
    files = bundle.manifest["files"]
    return {
        name: files[name]["sha256"]
        for name in sorted(files)
        if name.endswith(".onnx") or name == PREPROCESS
    }


def _nothing(part: Part, found: Gathered) -> str:
    if not found.unreadable:
        return f"part {part.number} ({part.files[0]}) holds no images"
    first = found.unreadable[0]
    return (
        f"none of the {len(found.unreadable)} images of part {part.number} can be read "
        f"({first['image_path']}: {first['reason']})"
    )
