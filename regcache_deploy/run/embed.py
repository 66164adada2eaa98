"""Embed a collection of images with a bundle: what INT8 encoders are bought for. No torch.

parts of the collection -> `embed_parts` -> clip-retrieval's files, part by part
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regcache_engines.bundle import Bundle

from ..compat import require
from ..data.embedding_files import EmbeddingFolder, check_format
from ..data.parts import Collection, Part, digits, of_partition, open_collection
from ..errors import DataError
from ..evaluation.engines import ON_GPU
from ..work.format import counted
from ..work.progress import Advance, Reporter
from .embed_parts import EmbedOptions, PartEmbedder, PartStation, Stats, hashes_of

if TYPE_CHECKING:
    from ..work.workers import Team

TICK = 1e-9
"""Seconds that anything takes; some clocks see none pass."""

log = logging.getLogger(__name__)


def embed(options: EmbedOptions, reporter: Reporter) -> dict[str, Any]:
    """Embed the partition's parts that are not there yet.

    Returns:
        For JSON: `output`, `parts` of this partition, `already` finished ones, `images` embedded
        and `unreadable` in all of them, `ignored` files of the folder, `seconds` and
        `images_per_second` of this run.

    Raises:
        BundleError, EngineError: no bundle, or it does not run.
        ConfigError: the output is another job's, or a library is missing.
        DataError: no images, a damaged shard, a part without a single readable image, or a part
            that a worker wrote elsewhere.
    """
    check_format(options.metadata)
    bundle = Bundle.open(options.bundle)
    with reporter.stage(f"listing {options.data}"):
        collection = open_collection(options.data, options.part_images)
    if collection.ignored:
        one = "file is no image by its name, or a folder behind a link"
        several = "files are no images by their name, or folders behind links"
        found = counted(collection.ignored, one, several)
        log.warning("%s: %s; left out", options.data, found)
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
    stats = [_stats(folder, part) for part in mine]
    unreadable = [each for part in stats for each in part["unreadable"]]
    if unreadable:
        first = f"{unreadable[0]['image_path']}: {unreadable[0]['reason']}"
        count = counted(len(unreadable), "image")
        log.warning("%s could not be read (%s); stats/ lists them", count, first)
    return {
        "output": str(options.output),
        "parts": len(mine),
        "already": len(mine) - len(todo),
        "images": sum(part["sample_count"] for part in stats),
        "unreadable": len(unreadable),
        "ignored": collection.ignored,
        "seconds": seconds,
        "images_per_second": embedded / seconds if todo else None,
    }


def _stats(folder: EmbeddingFolder, part: Part) -> Stats:
    found = folder.finished(part.number)
    if found is None:  # a worker's machine may have a folder of its own of that name
        raise DataError(
            f"part {part.number} was embedded and is not in {folder.path}; the folder must be one "
            "that all workers share"
        )
    return found


def _job(options: EmbedOptions, bundle: Bundle, collection: Collection) -> dict[str, Any]:
    """What has to be equal for parts to belong together; the bundle may lie elsewhere."""
    return {
        "bundle": hashes_of(bundle),
        "engine": options.engine,
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
    """How many images; parts are written by this process or by workers, each a whole part."""
    known = None if parts[0].is_shard else sum(len(part.files) for part in parts)
    total = 0
    with ExitStack() as stack:
        if options.workers is None:
            embedder = PartEmbedder(options, bundle, folder, options.threads, options.decoders)
            stack.enter_context(embedder)
            advance = stack.enter_context(reporter.stage("images", known))
            done: Iterator[tuple[int, Stats]] = (
                (place, embedder.write(part, advance)) for place, part in enumerate(parts)
            )
        else:
            team = stack.enter_context(_team(options))
            station = PartStation(options, folder, hashes_of(bundle), Path.cwd())
            advance = stack.enter_context(reporter.stage("images", known))
            done = _seen(team.answers(station, parts), advance)
        for count, (place, stats) in enumerate(done, 1):
            images, seconds = stats["sample_count"], max(stats["total_duration"], TICK)
            total += images
            log.info(
                "part %d (%d of %d): %d images, %.1f images/s, %.0f %% of the time in the engine",
                parts[place].number,
                count,
                len(parts),
                images,
                images / seconds,
                100 * stats["inference_duration"] / seconds,
            )
    return total


def _seen(answers: Iterator[tuple[int, Stats]], advance: Advance) -> Iterator[tuple[int, Stats]]:
    for place, stats in answers:
        advance(stats["sample_count"] + len(stats["unreadable"]))
        yield place, stats


@contextmanager
def _team(options: EmbedOptions) -> Iterator[Team]:
    require("torch", "search")  # which asks for the GPUs that workers get
    import torch

    from ..work.ray_team import open_team

    device = torch.device("cuda" if options.engine in ON_GPU else "cpu")
    with open_team(options.workers, device, options.threads) as team:
        assert team is not None
        yield team
