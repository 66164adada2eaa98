"""Which images a run takes, and how many."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError
from ..work.paths import require_folder
from ..work.settings import MachineSettings, in_range, setting
from .shards import expand, is_shards
from .tables import is_list

TORCHVISION = "torchvision:"

DEMO_DATA = "demo"
"""Stands for the demo's digits, as in `regcache eval --data`."""


@dataclass(frozen=True)
class DataSettings:
    """Images to calibrate, search and evaluate on.

    Raises:
        ConfigError: a number is out of range, or held-out images without others.
    """

    data: Path | None = setting(
        None,
        "images to calibrate and search on: one folder per class, images alone, a list "
        "(LIST.txt), webdataset shards (DIR, x-{000..012}.tar), or torchvision:NAME:ROOT; demo for "
        "the demo's digits, which the demo itself takes without",
        "DATA",
    )
    eval_data: Path | None = setting(None, "images to evaluate on, of the same classes", "DATA")
    limit: int | None = setting(None, "evaluate on at most N images", "N")
    calibration_images: int = setting(64, "images to calibrate on", "N")
    search_images: int = setting(512, "images to search on", "N")

    def __post_init__(self) -> None:
        if self.from_demo and self.eval_data is not None:
            raise ConfigError(
                "--eval-data needs --data: images to calibrate and search on must be other "
                "images than those to evaluate on"
            )
        in_range("--limit", self.limit, 2)
        in_range("--calibration-images", self.calibration_images, 1)
        in_range("--search-images", self.search_images, 1)

    @property
    def from_demo(self) -> bool:
        """The demo's handwritten digits; a folder of that name is `./demo`."""
        return self.data is None or str(self.data) == DEMO_DATA

    def check_folders(self) -> None:
        """Raise DataError where an image folder or a shard is not there."""
        for place in (None if self.from_demo else self.data, self.eval_data):
            if place is None:
                continue
            if is_list(place):
                continue
            if not is_stream(place):
                require_folder(place)
            elif not is_torchvision(place):
                expand(str(place))


def is_torchvision(place: Path) -> bool:
    """Whether `--data` names a data set of torchvision."""
    return str(place).startswith(TORCHVISION)


def is_stream(place: Path) -> bool:
    """Whether `--data` names shards or a data set of torchvision, which are read in order."""
    text = str(place)
    return is_torchvision(place) or is_shards(text) or ("{" in text and not place.exists())


@dataclass(frozen=True)
class ImageSettings(DataSettings, MachineSettings):
    """The images, and what decides how they are drawn and batched."""

    def __post_init__(self) -> None:
        DataSettings.__post_init__(self)
        MachineSettings.__post_init__(self)
