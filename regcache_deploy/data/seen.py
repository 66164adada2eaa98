"""Whether figures would be taken on the images that a bundle was made with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import DataError
from .settings import DEMO_DATA, is_stream, is_torchvision
from .sources import shared_source


def seen_line(provenance: Mapping[str, Any], data: str) -> str | None:
    """A warning where `data` is what the bundle was searched or calibrated on.

    Places are compared, not images: of a folder, a search takes a part. Of shards, each is a place;
    of the demo and of a data set of torchvision, each split.

    Args:
        provenance: of the bundle.
        data: as in `regcache eval --data`.
    """
    for name in ("options", "recalibrated", "build"):
        found = provenance.get(name)
        if not isinstance(found, dict):
            continue
        # `build` takes the split of `eval`; it calibrates on images that a sentence describes, and
        # names their place beside it
        place = found.get("place")
        if not place and _has_other_split(name, found.get("data")):
            continue
        place = place or found.get("data")
        if isinstance(place, str) and _same(place, data):
            return (
                f"{data} is where images came from that this bundle was searched, calibrated or "
                "chosen on: figures on them flatter it; take images that it has not seen"
            )
    return None


def _has_other_split(name: str, data: Any) -> bool:
    """Whether the images of a search or of `calibrate` are of another split than those of `eval`.

    The digits of the demo are for all three; of torchvision's data sets `calibrate` takes the
    training split, and a search takes that of `eval`.
    """
    if not isinstance(data, str):
        return False
    return data == DEMO_DATA or (name == "recalibrated" and is_torchvision(Path(data)))


def _same(one: str, other: str) -> bool:
    if one == other:
        return True
    first, second = Path(one), Path(other)
    if is_stream(first) and is_stream(second):
        try:
            return shared_source(first, second) is not None
        except DataError:  # the shards that it was made with are gone
            return False
    return first.exists() and second.exists() and first.resolve() == second.resolve()
