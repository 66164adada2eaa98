"""Read an image folder into memory: drawn by seed, decoded in threads, bad files counted."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regcache_engines.ahead import map_ahead
from regcache_engines.preprocess import Preprocess

from ..errors import DataError
from ..work.memory import image_memory
from ..work.progress import Reporter
from .class_names import class_indices, head_for
from .images import Images
from .scan import MAX_UNREADABLE, MIN_IMAGES, scan_folder

log = logging.getLogger(__name__)


def load_folder(
    path: Path,
    preprocess_cfg: Mapping[str, Any],
    limit: int | None = None,
    seed: int = 0,
    *,
    class_names: Sequence[str] | None = None,
    reporter: Reporter | None = None,
    room: int | None = None,
) -> Images:
    """Load at most `limit` images of a folder, evenly over its classes.

    Args:
        path: one folder per class (labels), images alone (no labels), or what `scan_folder` takes.
        preprocess_cfg: open_clip's.
        limit: largest number of images; None takes all.
        seed: chooses the images and their order. Every front part of the result is as balanced
            as can be, so `subset(range(n))` is a balanced subset.
        class_names: classes of the zero-shot head; None takes `head_for` the class folders.
        reporter: shows progress.
        room: bytes for the pixels; None takes `image_memory`.

    Raises:
        DataError: missing or empty folder, a single image, a class folder that fits no class,
            more than 1 % unreadable images, or more images than memory holds.
    """
    listing = scan_folder(path)
    for line in listing.warnings:
        log.warning("%s", line)
    head: tuple[str, ...] = ()
    label_of_folder: list[int] = []
    if listing.folders:
        head = tuple(class_names) if class_names is not None else head_for(listing.folders)
        label_of_folder = class_indices(listing.folders, head)
    preprocess = Preprocess(preprocess_cfg)
    chosen = listing.choose(limit, seed)
    check_memory(path, len(chosen), preprocess.size, room)

    pixels, reasons = _read_all([file for file, _ in chosen], preprocess, path, reporter)
    skipped = [f"{listing.name(chosen[i][0])}: {why}" for i, why in reasons.items()]
    _check_unreadable(path, skipped, len(chosen))
    good = [i for i in range(len(chosen)) if i not in reasons]
    if len(good) < MIN_IMAGES:
        raise DataError(f"{path}: only {len(good)} of {len(chosen)} chosen images could be read")
    labels = None
    if listing.folders:
        labels = torch.tensor([label_of_folder[chosen[i][1]] for i in good], dtype=torch.int64)
    return Images(
        pixels=pixels if not reasons else pixels[torch.tensor(good)],
        mean=preprocess.mean,
        std=preprocess.std,
        source=str(path),
        labels=labels,
        class_names=head,
        tried=len(chosen),
        skipped=tuple(skipped),
    )


def _read_all(
    files: Sequence[Path], preprocess: Preprocess, root: Path, reporter: Reporter | None
) -> tuple[Tensor, dict[int, str]]:
    """Decode `files` into one tensor `[n, H, W, 3]`; also why which index could not be read."""
    pixels = torch.zeros(len(files), *preprocess.size, 3, dtype=torch.uint8)
    view = pixels.numpy()
    reasons: dict[int, str] = {}

    def read(index: int) -> None:
        try:
            view[index] = preprocess.read(files[index])
        except DataError as error:
            reasons[index] = str(error)

    # Pillow releases the GIL while it decodes and resizes.
    stage = (reporter or Reporter(quiet=True)).stage(f"reading images of {root.name}", len(files))
    with warnings.catch_warnings(), stage as advance:
        # Odd metadata and sizes: what matters is whether the pixels can be had.
        warnings.simplefilter("ignore")
        for _ in map_ahead(read, range(len(files))):
            advance()
    return pixels, dict(sorted(reasons.items()))


def _check_unreadable(path: Path, skipped: Sequence[str], tried: int) -> None:
    if not skipped:
        return
    text = f"{path}: {len(skipped)} of {tried} images could not be read ({'; '.join(skipped[:3])}"
    text += "; ...)" if len(skipped) > 3 else ")"
    if len(skipped) > tried * MAX_UNREADABLE:
        raise DataError(f"{text}; more than {MAX_UNREADABLE:.0%}: repair or remove them")
    log.warning("%s; left out", text)


def check_memory(path: Path, count: int, size: tuple[int, int], room: int | None = None) -> None:
    """Raise DataError where the pixels of `count` images do not fit into `room` bytes."""
    needed, room = count * size[0] * size[1] * 3, image_memory() if room is None else room
    if needed > room:
        raise DataError(
            f"{count} images of {path} take {needed / 2**30:.1f} GiB in memory, and pixels may "
            f"still take {room / 2**30:.1f} GiB of this machine or container; take fewer with "
            "--search-images and --limit"
        )
