"""Data sets of torchvision, read from where they lie; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ..compat import import_torchvision
from ..errors import ConfigError, DataError
from .stream import Item

SETS: dict[str, tuple[str, dict[str, Any]]] = {
    "cifar10": ("CIFAR10", {"train": False}),
    "cifar100": ("CIFAR100", {"train": False}),
    "food101": ("Food101", {"split": "test"}),
    "flowers102": ("Flowers102", {"split": "test"}),
    "stanford_cars": ("StanfordCars", {"split": "test"}),
    "pets": ("OxfordIIITPet", {"split": "test"}),
}
"""Name -> torchvision's class and what selects its test split."""

TRAIN = {"train": True, "split": "train"}
PREFIX = "torchvision:"


def open_torchvision(text: str, train: bool = False) -> Any:
    """The data set of `torchvision:NAME:ROOT`.

    Args:
        text: as the user wrote it.
        train: the training split, for probes.

    Raises:
        ConfigError: not of that form, or an unknown name.
        DataError: the files are not under ROOT.
    """
    name, _, root = text.removeprefix(PREFIX).partition(":")
    if name not in SETS or not root:
        raise ConfigError(f"{text}: write {PREFIX}NAME:ROOT with NAME one of {', '.join(SETS)}")
    kind, arguments = SETS[name]
    if train:
        arguments = {key: TRAIN[key] for key in arguments}
        if name == "pets":
            arguments = {"split": "trainval"}
    import_torchvision()
    from torchvision import datasets

    try:
        return getattr(datasets, kind)(root=root, download=False, **arguments)
    except (RuntimeError, OSError, ValueError) as error:
        raise DataError(
            f"{kind} is not under {root} ({str(error).splitlines()[0][:160]}); place torchvision's "
            "unpacked files there"
        ) from error


def class_names_of(dataset: Any, text: str) -> tuple[str, ...]:
    """Class names in label order; underscores are spaces.

    Raises:
        DataError: this torchvision does not name them.
    """
    names = getattr(dataset, "classes", None)
    if not names:
        raise DataError(
            f"{text}: this torchvision has no class names for {type(dataset).__name__}; arrange "
            "the images in one folder per class and pass the folder"
        )
    return tuple(str(name).replace("_", " ") for name in names)


def items_of(dataset: Any, labels: list[int], indices: list[int]) -> Iterator[Item]:
    """Items in the order of `indices`; `labels[c]` is the head's index of class c."""
    targets = _targets(dataset)
    for index in indices:
        own = int(targets[index]) if targets is not None else int(dataset[index][1])
        yield Item(str(index), partial(_image, dataset, index), labels[own])


def _image(dataset: Any, index: int) -> Any:
    return dataset[index][0]


def _targets(dataset: Any) -> Any | None:
    """Labels without decoding the images; torchvision has several names for them."""
    for name in ("targets", "_labels"):
        if hasattr(dataset, name):
            return getattr(dataset, name)
    return None


def is_torchvision(text: str) -> bool:
    return text.startswith(PREFIX) and not Path(text).exists()
