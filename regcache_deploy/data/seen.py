"""Whether figures would be taken on the images that a bundle was made with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def seen_line(provenance: Mapping[str, Any], data: str) -> str | None:
    """A warning where `data` is what the bundle was searched or calibrated on.

    Places are compared, not images: of a folder, a search takes a part.

    Args:
        provenance: of the bundle.
        data: as in `regcache eval --data`.
    """
    options, again = (provenance.get(name) for name in ("options", "recalibrated"))
    for found in (options, again):
        place = found.get("data") if isinstance(found, dict) else None
        if isinstance(place, str) and _same(place, data):
            return (
                f"{data} is where this bundle's images to search and calibrate on came from: "
                "figures on them flatter it; take images that it has not seen"
            )
    return None


def _same(one: str, other: str) -> bool:
    if one == other:
        return True
    first, second = Path(one), Path(other)
    return first.exists() and second.exists() and first.resolve() == second.resolve()
