"""The two image sets of a run: one to search and calibrate on, one held out."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regcache_engines.preprocess import Preprocess

from ..errors import ConfigError, DataError
from ..work.memory import image_memory
from ..work.progress import Reporter
from .class_names import head_for
from .demo_images import load_demo_images
from .folder import load_folder
from .images import Images
from .in_memory import load_stream
from .scan import FolderListing, scan_folder
from .settings import ImageSettings, is_stream, is_torchvision
from .shards import read_classes
from .sources import open_data, shared_source

DEMO_EVALUATION = 1000
"""Held-out canvases of the demo, where `--limit` does not say otherwise."""

HELD_OUT = 5000
"""Most images of `--data` that are held out, where `--limit` does not say otherwise. The rest of a
large folder is not decoded."""

log = logging.getLogger(__name__)


def load_sets(
    settings: ImageSettings, preprocess_cfg: Mapping[str, Any], reporter: Reporter
) -> tuple[Images, Images]:
    """Load the search images and the evaluation images; no image is in both.

    Without `--data`, both are drawn from disjoint sets of the demo's handwritten digits. With
    `--data` alone, the images behind the search images are held out for evaluation. Only what is
    taken is decoded, and both sets together keep to `image_memory`.

    Returns:
        Search set (calibration takes its first images) and evaluation set, balanced over the
        classes from the front. With labels, both have the same `class_names`.

    Raises:
        ConfigError: `--data` and `--eval-data` are the same folder, or an image is in both.
        DataError: too few or unreadable images, or more than memory holds.
    """
    search_count = max(settings.search_images, settings.calibration_images)
    if settings.from_demo or settings.data is None:
        count = settings.limit or DEMO_EVALUATION
        return (
            load_demo_images(
                "search",
                search_count,
                settings.seed,
                preprocess_cfg=preprocess_cfg,
                reporter=reporter,
            ),
            load_demo_images(
                "heldout", count, settings.seed, preprocess_cfg=preprocess_cfg, reporter=reporter
            ),
        )
    if settings.eval_data is None:
        return _hold_out(settings, settings.data, search_count, preprocess_cfg, reporter)
    if settings.eval_data.resolve() == settings.data.resolve():
        raise ConfigError(
            "--data and --eval-data are the same folder, so the search would see the images of "
            "the evaluation; leave --eval-data out, and a part of --data is held out"
        )
    # A class that only one of the folders has must still be a class of the one zero-shot head.
    places = [place for place in (settings.data, settings.eval_data) if not is_stream(place)]
    listings = [scan_folder(place) for place in places]
    folders = {name for listing in listings for name in listing.folders}
    if len(listings) == 2:
        _refuse_shared(listings[0], listings[1], search_count, settings)
    if not places and (shared := shared_source(settings.data, settings.eval_data)):
        raise ConfigError(
            f"{shared} is in --data and in --eval-data, so the search would see images of the "
            "evaluation; name other shards, or leave --eval-data out, and a part of --data is held "
            "out"
        )
    head = head_for(sorted(folders)) if folders else None
    search = _load(settings.data, preprocess_cfg, search_count, settings, head, reporter)
    if is_stream(settings.data) and head is None:
        head = search.class_names or None
    evaluation = _load(
        settings.eval_data,
        preprocess_cfg,
        settings.limit,
        settings,
        head,
        reporter,
        search.pixels.nbytes,
    )
    if (search.labels is None) == (evaluation.labels is None) and (
        search.class_names != evaluation.class_names
    ):
        raise DataError(
            f"{search.source} and {evaluation.source} have different classes; give both the same "
            "class names"
        )
    return search, evaluation


def _refuse_shared(
    search: FolderListing, evaluation: FolderListing, search_count: int, settings: ImageSettings
) -> None:
    """A list, a link or a folder inside of the other may lead to the same files."""
    seen, judged = (
        {os.path.realpath(file) for file, _ in listing.choose(count, settings.seed)}
        for listing, count in ((search, search_count), (evaluation, settings.limit))
    )
    if both := sorted(seen & judged):
        raise ConfigError(
            f"{len(both)} of the {len(seen)} images that the search takes from --data are also in "
            f"--eval-data, the first is {both[0]}; leave --eval-data out, and a part of --data is "
            "held out"
        )


def skipped_lines(*sets: Images) -> tuple[str, ...]:
    """One warning line for every place with unreadable images; two sets may be of one place."""
    lines = (
        f"{len(images.skipped)} of {images.tried} images of {images.source} could not be read "
        f"and were left out ({images.skipped[0]}{'; ...' if len(images.skipped) > 1 else ''})"
        for images in sets
        if images.skipped
    )
    return tuple(dict.fromkeys(lines))


def _load(
    place: Path,
    preprocess_cfg: Mapping[str, Any],
    limit: int | None,
    settings: ImageSettings,
    head: Sequence[str] | None,
    reporter: Reporter,
    taken: int = 0,
) -> Images:
    """One set; `taken` bytes of the memory for images are another set's."""
    room = image_memory() - taken
    if not is_stream(place):
        return load_folder(
            place,
            preprocess_cfg,
            limit,
            settings.seed,
            class_names=head,
            reporter=reporter,
            room=room,
        )
    labels = is_torchvision(place) or read_classes(str(place)) is not None
    known, seed = head or (), settings.seed
    with reporter.stage(f"opening {place}"):  # headers of all shards may be read
        stream = open_data(
            str(place), Preprocess(preprocess_cfg), known, limit, seed, labels=labels
        )
    return load_stream(stream, limit, room, reporter)


def _hold_out(
    settings: ImageSettings,
    path: Path,
    search_count: int,
    preprocess_cfg: Mapping[str, Any],
    reporter: Reporter,
) -> tuple[Images, Images]:
    wanted = search_count + (HELD_OUT if settings.limit is None else settings.limit)
    images = _load(path, preprocess_cfg, wanted, settings, None, reporter)
    # Of a small folder half is for the evaluation, whose figure counts, or less where --limit says.
    half = len(images) // 2
    rest = half if settings.limit is None else max(half, len(images) - settings.limit)
    front = min(search_count, rest)
    if front < settings.calibration_images:
        raise DataError(
            f"{path} has {len(images)} readable images: too few to calibrate on "
            f"{settings.calibration_images} and hold others out; add images, pass --eval-data, "
            "or lower --calibration-images"
        )
    log.info("%s: searching on %d images, %d held out", path, front, len(images) - front)
    return images.subset(slice(0, front)), images.subset(slice(front, None))
