"""`--data`: a folder, shards, a data set of torchvision, or the demo, as one stream."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import ConfigError, DataError
from . import shards, torchvision_sets
from .class_names import class_indices, head_for
from .demo_images import load_demo_images
from .preprocess import Preprocess
from .scan import scan_folder
from .stream import ImageStream, Item

DEMO = "demo"
DEMO_IMAGES = 1000


def open_data(
    text: str,
    preprocess: Preprocess,
    head: Sequence[str] = (),
    limit: int | None = None,
    seed: int = 0,
    train: bool = False,
) -> ImageStream:
    """Open a data set for one or more passes.

    Classes that are all in `head` get its indices. Where not one of them is in it, the data set
    has classes of its own, and the stream's `class_names` say which. Where only some are, a name
    is misspelt or the wrong head was taken, and that is an error.

    Args:
        text: a folder, shards (`DIR`, `x.tar`, `x-{000..012}.tar`), `torchvision:NAME:ROOT`, or
            `demo`.
        preprocess: the model's own.
        head: class names of the zero-shot head at hand.
        limit: largest number of images, balanced over the classes of a folder.
        seed: chooses the images.
        train: the training split, where the data set has one.

    Raises:
        DataError: missing, empty or damaged data, or classes that fit only in part.
        ConfigError: a form that is not known.
    """
    if text == DEMO:
        return _demo(preprocess, limit, seed, train)
    if torchvision_sets.is_torchvision(text):
        return _torchvision(text, preprocess, head, limit, seed, train)
    if shards.is_shards(text) or "{" in text:
        return _shards(text, preprocess, head, limit)
    return _folder(Path(text), preprocess, head, limit, seed)


def match_classes(names: Sequence[str], head: Sequence[str]) -> tuple[list[int], tuple[str, ...]]:
    """Index of every class, and the names they index.

    Raises:
        DataError: some of the names are in `head` and others are not.
    """
    if head:
        known = [name for name in names if _in_head(name, head)]
        if known:
            return class_indices(names, head), tuple(head)
    own = head_for(names)
    return class_indices(names, own), own


def open_files(files: Sequence[Path], preprocess: Preprocess) -> ImageStream:
    """Single images, in the order given."""
    items = [Item(str(file), file) for file in files]
    return ImageStream(lambda: items, preprocess, "the images", length=len(items))


def _in_head(name: str, head: Sequence[str]) -> bool:
    try:
        class_indices([name], head)
    except DataError:
        return False
    return True


def _folder(
    path: Path, preprocess: Preprocess, head: Sequence[str], limit: int | None, seed: int
) -> ImageStream:
    listing = scan_folder(path)
    indices, names = match_classes(listing.folders, head) if listing.folders else ([], ())
    items = [
        Item(str(file.relative_to(path)), file, indices[label] if indices else None)
        for file, label in listing.choose(limit, seed)
    ]
    return ImageStream(lambda: items, preprocess, str(path), names, len(items))


def _torchvision(
    text: str,
    preprocess: Preprocess,
    head: Sequence[str],
    limit: int | None,
    seed: int,
    train: bool,
) -> ImageStream:
    dataset = torchvision_sets.open_torchvision(text, train)
    names = torchvision_sets.class_names_of(dataset, text)
    indices, resolved = match_classes(names, head)
    order = list(range(len(dataset)))
    if limit is not None and limit < len(order):
        random.Random(seed).shuffle(order)
        order = sorted(order[:limit])
    return ImageStream(
        lambda: torchvision_sets.items_of(dataset, indices, order),
        preprocess,
        text,
        resolved,
        len(order),
    )


def _shards(
    text: str, preprocess: Preprocess, head: Sequence[str], limit: int | None
) -> ImageStream:
    files = shards.expand(text)
    own = shards.read_classes(text)
    if own is not None:
        indices, names = match_classes(own, head)
    elif head:
        indices, names = list(range(len(head))), tuple(head)
    else:
        raise DataError(f"{text}: put the class names into classnames.txt beside the shards")

    def items() -> Iterator[Item]:
        for sample in itertools.islice(shards.samples(files), limit):
            image = sample.image
            if image is None:
                raise DataError(f"{text}: sample {sample.key} holds no image")
            label = indices[shards.label_of(sample, text, len(indices))]
            yield Item(sample.key, image, label)

    return ImageStream(items, preprocess, text, names)


def _demo(preprocess: Preprocess, limit: int | None, seed: int, train: bool) -> ImageStream:
    from dataclasses import asdict

    from PIL import Image

    config = {k: v for k, v in asdict(preprocess.config).items() if v is not None}
    count = limit or DEMO_IMAGES
    if count < 1:
        raise ConfigError(f"--limit {count} is out of range: take at least 1")
    images = load_demo_images("train" if train else "heldout", count, seed, preprocess_cfg=config)
    assert images.labels is not None
    items = [
        Item(str(i), lambda i=i: Image.fromarray(images.pixels[i].numpy()), int(label))  # type: ignore[misc]
        for i, label in enumerate(images.labels)
    ]
    return ImageStream(lambda: items, preprocess, images.source, images.class_names, count)
