"""`--data`: a folder, shards, a data set of torchvision, or the demo, as one stream."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from regcache_engines.preprocess import Preprocess

from ..compat import require
from ..errors import ConfigError, DataError
from ..work.format import counted
from . import shards, torchvision_sets
from .class_names import class_indices, head_for, is_wnid, refuse_splits
from .scan import scan_folder
from .settings import is_stream
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
    labels: bool = True,
) -> ImageStream:
    """Open a data set for one or more passes.

    Classes that are all in `head` get its indices. Where not one of them is in it, the data set
    has classes of its own, and the stream's `class_names` say which. Where only some folders are,
    one is misspelt or the wrong head was taken, and that is an error; torchvision's data sets and
    shards have numbers for labels, and their names are taken as they are.

    Args:
        text: a folder, a list of files (`LIST.txt`), shards (`DIR`, `x.tar`, `x-{000..012}.tar`),
            `torchvision:NAME:ROOT`, or `demo`.
        preprocess: the model's own.
        head: class names of the zero-shot head at hand.
        limit: largest number of images: balanced over the classes of a folder, drawn over all of a
            data set of torchvision and of uncompressed shards.
        seed: chooses the images and their order. Shards come in their own order without `limit`.
        train: the training split, where the data set has one.
        labels: False asks for images alone: no class is looked for, and every label is None.

    Raises:
        DataError: missing, empty or damaged data, or folders that fit only in part.
        ConfigError: a form that is not known.
    """
    if text == DEMO:
        return _demo(preprocess, limit, seed, train, labels)
    if torchvision_sets.is_torchvision(text):
        return _torchvision(text, preprocess, head, limit, seed, train, labels)
    if is_stream(Path(text)):
        return _shards(text, preprocess, head, limit, seed, labels)
    return _folder(Path(text), preprocess, head, limit, seed, labels)


def match_folders(names: Sequence[str], head: Sequence[str]) -> tuple[list[int], tuple[str, ...]]:
    """Index of every class folder, and the class names they index.

    Raises:
        DataError: some of the folders are in `head` and others are not.
    """
    if any(_in_head(name, head) for name in names):
        return class_indices(names, head), tuple(head)
    own = head_for(names)
    return class_indices(names, own), own


def match_numbered(names: Sequence[str], head: Sequence[str]) -> tuple[list[int], tuple[str, ...]]:
    """Index of every class of a data set that numbers its labels, and the names they index.

    `head` serves where every class is one of its own in it. Otherwise the names are the classes:
    `apple` of CIFAR-100 is no mistake because ImageNet has no apple but a Granny Smith.

    Raises:
        DataError: fewer than two classes.
    """
    if len(names) > 1 and tuple(names) == tuple(head):  # some of ImageNet's share a name
        return list(range(len(head))), tuple(head)
    try:
        found = [class_indices([name], head)[0] for name in names]
    except DataError:
        found = []
    if names and len(set(found)) == len(names):
        return found, tuple(head)
    if len(names) < 2 or any(is_wnid(name) for name in names):
        own = head_for(names)
        return class_indices(names, own), own
    return list(range(len(names))), tuple(name.replace("_", " ").strip() for name in names)


def open_files(files: Sequence[Path], preprocess: Preprocess) -> ImageStream:
    """Single images, in the order given."""
    items = [Item(str(file), file) for file in files]
    return ImageStream(lambda: items, preprocess, "the images", length=len(items))


def shared_source(one: Path, other: Path) -> str | None:
    """The first shard, or the data set of torchvision, that two streams both read; else None.

    Raises:
        DataError: a shard is missing.
    """
    first, second = _sources(one), _sources(other)
    return min(first & second, default=None)


def _sources(place: Path) -> set[str]:
    text = str(place)
    if not torchvision_sets.is_torchvision(text):
        return {os.path.realpath(shard) for shard in shards.expand(text)}
    name, _, root = text.removeprefix(torchvision_sets.PREFIX).partition(":")
    return {f"{torchvision_sets.PREFIX}{name}:{os.path.realpath(root)}"}


def _in_head(name: str, head: Sequence[str]) -> bool:
    try:
        class_indices([name], head)
    except DataError:
        return False
    return True


def _folder(
    path: Path,
    preprocess: Preprocess,
    head: Sequence[str],
    limit: int | None,
    seed: int,
    labels: bool,
) -> ImageStream:
    listing = scan_folder(path)
    indices: list[int] = []
    names: tuple[str, ...] = ()
    if labels and listing.folders:
        indices, names = match_folders(listing.folders, head)
    elif len(listing.folders) > 1:  # test images among the others are never meant
        refuse_splits(listing.folders)
    items = [
        Item(listing.name(file), file, indices[label] if indices else None)
        for file, label in listing.choose(limit, seed)
    ]
    return ImageStream(
        lambda: items, preprocess, str(path), names, len(items), left_out=listing.warnings
    )


def _torchvision(
    text: str,
    preprocess: Preprocess,
    head: Sequence[str],
    limit: int | None,
    seed: int,
    train: bool,
    labels: bool,
) -> ImageStream:
    dataset = torchvision_sets.open_torchvision(text, train)
    order = list(range(len(dataset)))
    random.Random(seed).shuffle(order)  # class by class as it comes: the front calibrates
    order = order[:limit]
    if not labels:
        items = [Item(str(i), lambda i=i: dataset[i][0]) for i in order]  # type: ignore[misc]
        return ImageStream(lambda: items, preprocess, text, length=len(order))
    indices, names = match_numbered(torchvision_sets.class_names_of(dataset, text), head)
    return ImageStream(
        lambda: torchvision_sets.items_of(dataset, indices, order),
        preprocess,
        text,
        names,
        len(order),
    )


def _shards(
    text: str,
    preprocess: Preprocess,
    head: Sequence[str],
    limit: int | None,
    seed: int,
    labels: bool,
) -> ImageStream:
    files = shards.expand(text)
    indices: list[int] = []
    names: tuple[str, ...] = ()
    own = shards.read_classes(text) if labels else None
    if own is not None:
        indices, names = match_numbered(own, head)
    elif labels and head:
        indices, names = list(range(len(head))), tuple(head)
    elif labels:
        raise DataError(f"{text}: put the class names into classnames.txt beside the shards")
    samples, length, lines = _samples(text, files, limit, seed)

    def items() -> Iterator[Item]:
        for sample in samples():
            image = sample.image
            if image is None:
                raise DataError(f"{text}: sample {sample.key} holds no image")
            label = indices[shards.label_of(sample, text, len(indices))] if labels else None
            yield Item(sample.key, image, label)

    return ImageStream(items, preprocess, text, names, length, left_out=lines)


def _samples(
    text: str, files: Sequence[Path], limit: int | None, seed: int
) -> tuple[Callable[[], Iterator[shards.Sample]], int | None, tuple[str, ...]]:
    """What makes the samples, how many there are where it is known, and what has to be said."""
    if limit is None:
        return lambda: shards.samples(files), None, ()
    if any(map(shards.is_compressed, files)):
        line = (
            f"{text}: of compressed shards the first {limit} images are taken, which are of the "
            "first classes where they are sorted by class; unpack them to .tar, and the images are "
            "drawn from all"
        )
        return lambda: itertools.islice(shards.samples(files), limit), None, (line,)
    drawn, lines = shards.draw(files, limit, seed), []
    if drawn.looked < len(files):
        lines.append(f"{text}: the images are drawn from {drawn.looked} of the {len(files)} shards")
    if drawn.imageless:
        lines.append(f"{text}: {counted(drawn.imageless, 'sample')} without an image; left out")
    return lambda: (shards.read_at(*at) for at in drawn.places), len(drawn.places), tuple(lines)


def _demo(
    preprocess: Preprocess, limit: int | None, seed: int, train: bool, labels: bool
) -> ImageStream:
    require("torch", "search")
    require("sklearn", "search")
    from PIL import Image

    from .demo_images import load_demo_images

    count = limit or DEMO_IMAGES
    if count < 1:
        raise ConfigError(f"--limit {count} is out of range: take at least 1")
    split = "train" if train else "heldout"
    images = load_demo_images(split, count, seed, preprocess_cfg=preprocess.config)
    assert images.labels is not None
    items = [
        Item(
            str(i),
            lambda i=i: Image.fromarray(images.pixels[i].numpy()),  # type: ignore[misc]
            int(label) if labels else None,
        )
        for i, label in enumerate(images.labels)
    ]
    names = images.class_names if labels else ()
    return ImageStream(lambda: items, preprocess, images.source, names, count)
