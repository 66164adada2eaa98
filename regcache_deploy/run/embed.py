"""Embed a collection of images with a bundle: what INT8 encoders are bought for. No torch.

parts of the collection -> decoded in processes -> engine -> clip-retrieval's files, part by part
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from regcache_engines.bundle import Bundle
from regcache_engines.engine import Engine
from regcache_engines.preprocess import Preprocess

from ..data.decoders import Decoders
from ..data.embedding_files import EmbeddingFolder, Gathered, check_format
from ..data.parts import Collection, Part, digits, of_partition, open_collection
from ..errors import DataError
from ..evaluation.engines import open_engine
from ..work.progress import Advance, Reporter

log = logging.getLogger(__name__)


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
        workers: processes that decode; 0 takes one a core.
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
    workers: int = 0


@dataclass
class _Clock:
    """Seconds that a part spent waiting for pixels, and in the engine."""

    read: float = 0.0
    inference: float = 0.0


def embed(options: EmbedOptions, reporter: Reporter) -> dict[str, Any]:
    """Embed the partition's parts that are not there yet.

    Returns:
        For JSON: `output`, `parts` of this partition, `already` finished ones, `images` embedded
        and `unreadable` in all of them, `seconds` and `images_per_second` of this run.

    Raises:
        BundleError, EngineError: no bundle, or it does not run.
        ConfigError: the output is another job's, or a library is missing.
        DataError: no images, a damaged shard, or a part without a single readable image.
    """
    check_format(options.metadata)
    bundle = Bundle.open(options.bundle)
    with reporter.stage(f"listing {options.data}"):
        collection = open_collection(options.data, options.part_images)
    folder = EmbeddingFolder(options.output, digits(collection.parts), options.metadata)
    folder.begin(_job(options, bundle, collection))
    mine = of_partition(collection.parts, *options.partition)
    todo = [part for part in mine if folder.finished(part.number) is None]
    if len(todo) < len(mine):
        log.info("%d of %d parts are finished", len(mine) - len(todo), len(mine))
    began, embedded = time.monotonic(), 0
    if todo:
        embedded = _embed_parts(options, bundle, folder, todo, reporter)
    seconds = time.monotonic() - began
    stats = [folder.finished(part.number) or {} for part in mine]
    unreadable = [each for part in stats for each in part.get("unreadable", [])]
    if unreadable:
        first = f"{unreadable[0]['image_path']}: {unreadable[0]['reason']}"
        log.warning("%d images could not be read (%s); stats/ lists them", len(unreadable), first)
    return {
        "output": str(options.output),
        "parts": len(mine),
        "already": len(mine) - len(todo),
        "images": sum(part.get("sample_count", 0) for part in stats),
        "unreadable": len(unreadable),
        "seconds": seconds,
        "images_per_second": embedded / seconds if todo else None,
    }


def _job(options: EmbedOptions, bundle: Bundle, collection: Collection) -> dict[str, Any]:
    """What has to be equal for parts to belong together. Paths may change, names may not."""
    files = bundle.manifest["files"]
    return {
        "bundle": {name: files[name]["sha256"] for name in sorted(files) if name.endswith(".onnx")},
        "parts": len(collection.parts),
        "files": collection.digest(),
    }


def _embed_parts(
    options: EmbedOptions,
    bundle: Bundle,
    folder: EmbeddingFolder,
    parts: Sequence[Part],
    reporter: Reporter,
) -> int:
    sizes, done = (1, options.batch_size), 0
    known = None if parts[0].is_shard else sum(len(part.files) for part in parts)
    with (
        open_engine(options.engine, bundle, options.threads, sizes) as engine,
        Decoders(bundle.preprocess, options.workers) as decoders,
        reporter.stage("images", known) as advance,
    ):
        preprocess = Preprocess(bundle.preprocess)
        for index, part in enumerate(parts):
            began, clock = time.time(), _Clock()
            found = _gather(part, decoders, engine, preprocess, options.batch_size, clock, advance)
            if not found.paths:
                raise DataError(_nothing(part, found))
            rows, writing = np.concatenate(found.rows), time.time()
            stats = {
                "start_time": began,
                "end_time": writing,
                "read_duration": clock.read,
                "inference_duration": clock.inference,
                "total_duration": writing - began,
                "sample_count": len(found.paths),
                "unreadable": found.unreadable,
            }
            folder.write(part.number, rows, found.columns(), stats)
            done += len(found.paths)
            rate = len(found.paths) / (time.time() - began)
            log.info(
                "part %d (%d of %d): %d images, %.1f images/s, %.0f %% of the time in the engine",
                part.number,
                index + 1,
                len(parts),
                len(found.paths),
                rate,
                100 * clock.inference / (writing - began),
            )
    return done


def _gather(
    part: Part,
    decoders: Decoders,
    engine: Engine,
    preprocess: Preprocess,
    batch_size: int,
    clock: _Clock,
    advance: Advance,
) -> Gathered:
    found, asked = Gathered(), time.monotonic()
    for batch, (pixels, reasons) in decoders.batches(part.pictures(), batch_size):
        got = time.monotonic()
        if len(pixels):
            found.rows.append(engine.infer(preprocess.in_layout(pixels, engine.pixels)))
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


def _nothing(part: Part, found: Gathered) -> str:
    if not found.unreadable:
        return f"part {part.number} ({part.files[0]}) holds no images"
    first = found.unreadable[0]
    return (
        f"none of the {len(found.unreadable)} images of part {part.number} can be read "
        f"({first['image_path']}: {first['reason']})"
    )
