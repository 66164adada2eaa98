"""transformers' `preprocessor_config.json` in open_clip's words.

Pillow decodes and resizes 8-bit pixels here, as it does for every model of this package.
transformers' own resize differs by the rounding of pixels, and for DINOv3, which it resizes in
floating point, by the rounding to 8 bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..errors import ModelError

INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""Pillow's numbers of its filters."""
TAKEN = ("bilinear", "bicubic")
"""What open_clip's transform resizes with."""

CLIP = {
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
SIGLIP = CLIP | {
    "size": {"height": 224, "width": 224},
    "do_center_crop": False,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
DINOV2 = CLIP | IMAGENET | {"size": {"shortest_edge": 256}}
DINOV3 = SIGLIP | IMAGENET | {"resample": 2}


class Preprocessing:
    """How images are made ready.

    Args:
        values: as in the file; empty where there is none.
        defaults: of the family's own processor.
        where: the file, for messages.

    Raises:
        ModelError: a step that this package does not have, or a value that makes no sense.
    """

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> None:
        self.where = where
        chosen = dict(defaults) | {k: v for k, v in values.items() if v is not None}
        idle = {"do_resize", "do_rescale", "rescale_factor", "do_normalize"}
        idle |= set() if chosen["do_center_crop"] else {"do_center_crop", "crop_size"}
        self.defaulted = {
            name: default
            for name, default in defaults.items()
            if values.get(name) is None and name not in idle
        }
        if not chosen["do_resize"] or not chosen["do_rescale"]:
            raise self._wrong("do_resize and do_rescale must be true")
        if not math.isclose(chosen["rescale_factor"], 1 / 255, rel_tol=1e-4):
            raise self._wrong(f"rescale_factor {chosen['rescale_factor']} is not 1/255")
        interpolation = INTERPOLATIONS.get(chosen["resample"], str(chosen["resample"]))
        if interpolation not in TAKEN:
            raise self._wrong(f"resample {interpolation} is neither {' nor '.join(TAKEN)}")
        self.interpolation = interpolation
        self.mean, self.std = [0.0] * 3, [1.0] * 3
        if chosen["do_normalize"]:
            self.mean = self._channels("image_mean", chosen["image_mean"])
            self.std = self._channels("image_std", chosen["image_std"])
        self.edge, self.size = self._sizes(chosen)

    def _sizes(self, chosen: Mapping[str, Any]) -> tuple[int | None, tuple[int, int]]:
        """Shorter edge before the crop (None: squashed), and height and width at the end."""
        size = chosen["size"]
        crop = self._pair("crop_size", chosen["crop_size"]) if chosen["do_center_crop"] else None
        if isinstance(size, int):  # old files: the shorter edge where it is cropped
            size = {"shortest_edge": size} if crop else {"height": size, "width": size}
        if not isinstance(size, Mapping):
            raise self._wrong(f"size {size!r}")
        if "shortest_edge" in size and "longest_edge" not in size:
            edge = size["shortest_edge"]
            if crop is None:
                raise self._wrong("a shorter edge without a crop gives images of varying shape")
            if not isinstance(edge, int) or edge < max(crop):
                raise self._wrong(f"a crop of {crop} out of a shorter edge of {edge}")
            if crop[0] != crop[1]:  # open_clip and timm resize until both sides are covered
                raise self._wrong(f"a crop of {crop}, no square, out of a shorter edge")
            return edge, crop
        if set(size) != {"height", "width"}:
            raise self._wrong(f"size {dict(size)}")
        squashed = self._pair("size", size)
        if crop is not None and crop != squashed:
            raise self._wrong(f"a crop of {crop} out of squashed {squashed}")
        return None, squashed

    def _pair(self, name: str, value: Any) -> tuple[int, int]:
        sides: list[Any] = [value, value] if isinstance(value, int) else []
        if isinstance(value, Mapping):
            sides = [value.get("height"), value.get("width")]
        if not sides or not all(isinstance(side, int) and side > 0 for side in sides):
            raise self._wrong(f"{name} {value!r}")
        return sides[0], sides[1]

    def _channels(self, name: str, value: Any) -> list[float]:
        if not isinstance(value, list) or len(value) != 3:
            raise self._wrong(f"{name} {value!r} is not one number per colour")
        return [float(number) for number in value]

    def _wrong(self, what: str) -> ModelError:
        return ModelError(f"{self.where}: this preprocessing is not supported: {what}")

    def config(self, size: tuple[int, int]) -> dict[str, Any]:
        """open_clip's preprocess_cfg, and timm's crop where more is cut off than the sides.

        Args:
            size: height and width of the encoder's input; the share of the crop stays.
        """
        out: dict[str, Any] = {
            "size": list(size),
            "mode": "RGB",
            "mean": self.mean,
            "std": self.std,
            "interpolation": self.interpolation,
            "resize_mode": "squash" if self.edge is None else "shortest",
            "fill_color": 0,
        }
        if self.edge is not None and self.edge > max(self.size):
            out |= {"crop_pct": crop_share(max(self.size), self.edge), "crop_mode": "center"}
        return out


def crop_share(crop: int, edge: int) -> float:
    """The share that timm's `floor(crop / share)` makes `edge` of again."""
    share = crop / edge
    return share if math.floor(crop / share) == edge else math.nextafter(share, 0.0)
