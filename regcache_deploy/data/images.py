"""A set of images in memory: decoded, preprocessed, with labels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..errors import DataError


@dataclass(frozen=True)
class Images:
    """Preprocessed images.

    Attributes:
        pixels: uint8 `[n, H, W, 3]`, RGB, what open_clip's transform holds before ToTensor.
        labels: int64 `[n]`, indices into `class_names`; None where there are no labels.
        class_names: classes of the zero-shot head; empty without labels.
        mean, std: per channel, for pixels in [0, 1].
        source: where the images come from, for reports.
        tried: files that were opened.
        skipped: files that could not be read, with the reason.
    """

    pixels: Tensor = field(repr=False)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    labels: Tensor | None = field(default=None, repr=False)
    class_names: tuple[str, ...] = ()
    tried: int = 0
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape = tuple(self.pixels.shape)
        if self.pixels.dtype != torch.uint8 or len(shape) != 4 or shape[3] != 3:
            raise DataError(f"pixels are {self.pixels.dtype} {shape}, expected uint8 [n, H, W, 3]")
        if self.labels is None:
            return
        if self.labels.dtype != torch.int64 or self.labels.shape != shape[:1]:
            raise DataError(
                f"labels are {self.labels.dtype} {tuple(self.labels.shape)}, expected int64 "
                f"[{shape[0]}]"
            )
        outside = (self.labels < 0) | (self.labels >= len(self.class_names))
        if bool(outside.any()):
            raise DataError(f"a label is outside the {len(self.class_names)} classes")

    def __len__(self) -> int:
        return len(self.pixels)

    def subset(self, indices: Sequence[int] | slice | Tensor) -> Images:
        """The images at `indices`, in that order."""
        if not isinstance(indices, (slice, Tensor)):
            indices = torch.tensor(list(indices), dtype=torch.int64)
        labels = None if self.labels is None else self.labels[indices]
        return replace(self, pixels=self.pixels[indices], labels=labels)

    def normalized(self, pixels: Tensor) -> Tensor:
        """uint8 `[b, H, W, 3]` -> float32 `[b, 3, H, W]`, as ToTensor and Normalize do it."""
        mean, std = (torch.tensor(v, dtype=torch.float32) for v in (self.mean, self.std))
        scaled = pixels.permute(0, 3, 1, 2).contiguous().to(torch.float32).div_(255)
        return scaled.sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))

    def batches(self, size: int) -> Iterator[Tensor]:
        """Normalized float32 batches `[b, 3, H, W]`, b <= `size`, in order."""
        for start in range(0, len(self), size):
            yield self.normalized(self.pixels[start : start + size])

    def fingerprint(self) -> str:
        """SHA-256 over shape, pixels and labels."""
        digest = hashlib.sha256(repr(tuple(self.pixels.shape)).encode())
        for image in self.pixels:  # one at a time: the whole set may be gigabytes
            digest.update(image.contiguous().numpy().data)
        if self.labels is not None:
            digest.update(b"labels")
            digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()
