"""What another image size does to a model, said in one line."""

from __future__ import annotations

import logging

from regcache_export.spec import EncoderSpec

log = logging.getLogger(__name__)


def warn_of_cut_pixels(name: str, spec: EncoderSpec) -> None:
    """Patches are taken from the upper left; what does not fill one is never seen."""
    height, width = (
        side - side % patch for side, patch in zip(spec.image_size, spec.patch_size, strict=True)
    )
    if (height, width) != tuple(spec.image_size):
        log.warning(
            "%s: of images of %d x %d pixels, %d x %d are seen: patches of %d x %d fill no more",
            name,
            *spec.image_size,
            height,
            width,
            *spec.patch_size,
        )


def warn_of_resampled_positions(name: str, known: tuple[int, int], size: tuple[int, int]) -> None:
    """Weights were trained at another size; `known` and `size` are both pixels or both patches."""
    if tuple(known) != tuple(size):
        log.warning(
            "%s: the position embedding of %d x %d is resampled to %d x %d", name, *known, *size
        )
