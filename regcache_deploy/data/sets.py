"""The two image sets of a run: one to search and calibrate on, one held out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError
from ..work.progress import Reporter
from .class_names import head_for
from .demo_images import load_demo_images
from .folder import load_folder
from .images import Images
from .scan import scan_folder
from .settings import ImageSettings

DEMO_EVALUATION = 1000
"""Held-out canvases of the demo, where `--limit` does not say otherwise."""

log = logging.getLogger(__name__)


def load_sets(
    settings: ImageSettings, preprocess_cfg: Mapping[str, Any], reporter: Reporter
) -> tuple[Images, Images]:
    """Load the search images and the evaluation images; no image is in both.

    Without `--data`, both are drawn from disjoint sets of the demo's handwritten digits. With
    `--data` alone, the images behind the search images are held out for evaluation.

    Returns:
        Search set (calibration takes its first images) and evaluation set, balanced over the
        classes from the front. With labels, both have the same `class_names`.

    Raises:
        ConfigError: `--data` and `--eval-data` are the same folder.
        DataError: too few or unreadable images.
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
    folders = {*scan_folder(settings.data).folders, *scan_folder(settings.eval_data).folders}
    head = head_for(sorted(folders)) if folders else None
    search, evaluation = (
        load_folder(path, preprocess_cfg, limit, settings.seed, class_names=head, reporter=reporter)
        for path, limit in ((settings.data, search_count), (settings.eval_data, settings.limit))
    )
    return search, evaluation


def skipped_lines(*sets: Images) -> tuple[str, ...]:
    """One warning line for every set with unreadable images."""
    return tuple(
        f"{len(images.skipped)} of {images.tried} images of {images.source} could not be read "
        f"and were left out ({images.skipped[0]}{'; ...' if len(images.skipped) > 1 else ''})"
        for images in sets
        if images.skipped
    )


def _hold_out(
    settings: ImageSettings,
    path: Path,
    search_count: int,
    preprocess_cfg: Mapping[str, Any],
    reporter: Reporter,
) -> tuple[Images, Images]:
    wanted = None if settings.limit is None else search_count + settings.limit
    images = load_folder(path, preprocess_cfg, wanted, settings.seed, reporter=reporter)
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
