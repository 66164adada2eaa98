"""Image-text pairs in COCO's captions format."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regcache_engines.documents import read_json
from regcache_engines.preprocess import Preprocess

from ..errors import DataError
from .stream import ImageStream, Item
from .tables import check_inside

MAX_CAPTIONS = 1 << 30
"""Bytes; COCO's own are 90 MiB."""

TEXTS_PER_IMAGE = 5
"""COCO has five captions an image and a few with more; clip_benchmark takes the first five."""

LAYOUTS = ("val2017", "val2014", "images/val2017", "images/val2014", "images", "")
CAPTION_FILES = ("captions_val2017.json", "captions_val2014.json")


@dataclass(frozen=True)
class Captions:
    """Texts and the images they describe.

    Attributes:
        images: one item per described image.
        texts: all texts.
        image_of_text: index into `images`.
        source: for reports.
    """

    images: tuple[Item, ...]
    texts: tuple[str, ...]
    image_of_text: tuple[int, ...]
    source: str

    def stream(self, preprocess: Preprocess) -> ImageStream:
        return ImageStream(lambda: self.images, preprocess, self.source, length=len(self.images))


def read_captions(root: Path, captions: Path | None = None, limit: int | None = None) -> Captions:
    """Read a captions file.

    Args:
        root: `COCO_DATA_ROOT`: `annotations/captions_val2017.json` and `val2017/` (or 2014), or a
            folder of images together with `captions`.
        captions: the file, where it lies elsewhere.
        limit: number of images.

    Raises:
        DataError: no such file, not of this format, empty, or an image is missing, there twice, or
            outside of the data set.
    """
    file = captions if captions is not None else _find(root)
    try:
        document = read_json(file, MAX_CAPTIONS)
        names = _names(document["images"], root, file)
        pairs = [(_id(e["image_id"]), _text(e["caption"])) for e in document["annotations"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file} is no captions file: expected COCO's `images` and `annotations` "
            f"({type(error).__name__}: {error})"
        ) from error
    texts: dict[int | str, list[str]] = {}
    for image_id, text in pairs:
        if image_id not in names:
            raise DataError(f"{file}: a caption belongs to image {image_id}, which is not listed")
        if text.strip():
            texts.setdefault(image_id, []).append(text.strip())
    chosen = list(texts)[:limit]
    if not chosen:
        raise DataError(f"{file} holds no captions")
    folder = _image_folder(root, names[chosen[0]])
    images, flat, owner = [], [], []
    for index, image_id in enumerate(chosen):
        path = folder / names[image_id]
        if not os.path.isfile(path):  # of a name that no system takes, too
            raise DataError(f"{file}: the image {path} is missing; the set must be whole")
        images.append(Item(names[image_id], path))
        for text in texts[image_id][:TEXTS_PER_IMAGE]:
            flat.append(text)
            owner.append(index)
    return Captions(tuple(images), tuple(flat), tuple(owner), str(file))


def _names(entries: Iterable[Mapping[str, Any]], root: Path, file: Path) -> dict[int | str, str]:
    names: dict[int | str, str] = {}
    for entry in entries:
        number, name = _id(entry["id"]), _text(entry["file_name"])
        check_inside(name, root, file)
        if names.setdefault(number, name) != name:
            raise DataError(f"{file}: image {number} is there twice, as {names[number]} and {name}")
    return names


def _id(value: Any) -> int | str:
    if not isinstance(value, (int, str)):
        raise TypeError(f"an image's id is no {type(value).__name__}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):  # a null would be the caption "None"
        raise TypeError(f"{value!r:.40} is no text")
    return value


def _find(root: Path) -> Path:
    for name in CAPTION_FILES:
        for place in (root / "annotations", root):
            if (place / name).is_file():
                return place / name
    raise DataError(
        f"{root} holds no annotations/{CAPTION_FILES[0]}; pass --captions FILE, or set --data to "
        "the folder that COCO_DATA_ROOT names"
    )


def _image_folder(root: Path, example: str) -> Path:
    for layout in LAYOUTS:
        if os.path.isfile(root / layout / example):
            return root / layout
    raise DataError(f"the image {example} is in none of the image folders of {root}")
