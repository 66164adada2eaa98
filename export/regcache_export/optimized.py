"""The graph with ONNX Runtime's optimizations against the graph as written."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from regcache_engines.load import load_engine

from .errors import BundleError
from .survivors import Array
from .trace import fixed_batch, graph_input

if TYPE_CHECKING:
    from regcache_engines.bundle import Bundle

    from .certificate import Subject

MIN_COSINE = 0.9999
CONTROL_FACTOR = 4.0
"""How much farther from the written graph than rounding noise the optimized one may be."""

MIN_HALF_COSINE = 0.95
HALF_FACTOR = 2.0
"""Bounds for a float16 body against the same graph in float32: never below the first, and never
farther from it than so many times what was measured at export (plus 1 - MIN_COSINE)."""


@dataclass(frozen=True)
class OptimizedRun:
    """Agreement on the same images.

    Attributes:
        top1: share of images with the same class, or None without a zero-shot head.
        mean_cosine, min_cosine: of the features.
        cosines: by image.
        flipped: images of another class.
        control: mean cosine of the written graph with its float64 reference, each running freely;
            measured only where the usual bounds are missed (`rounding_noise`). Nothing can agree
            with a graph better than exact arithmetic does.
        explained: of the images that are `off`, those that rounding noise moves as far; likewise.
        half: of a graph with a float16 body, the mean cosine at export with the same graph in
            float32. Rounding to float16 moves codes everywhere, so that equal classes are
            reported, and only the cosine is judged.
    """

    top1: float | None
    mean_cosine: float
    min_cosine: float
    cosines: tuple[float, ...] = field(default=(), repr=False)
    flipped: tuple[int, ...] = ()
    control: float | None = None
    explained: tuple[int, ...] = ()
    half: float | None = None

    @property
    def near(self) -> bool:
        """No control is needed."""
        exact = self.mean_cosine >= MIN_COSINE and not self.flipped
        return self.half is not None or exact

    @property
    def off(self) -> frozenset[int]:
        """Images of another class, or farther from the written graph than usual."""
        far = (image for image, near in enumerate(self.cosines) if not near >= MIN_COSINE)
        return frozenset((*self.flipped, *far))

    @property
    def unexplained(self) -> frozenset[int]:
        return self.off - set(self.explained)

    @property
    def bound(self) -> float:
        """The mean cosine that is asked for."""
        if self.half is not None:
            known = 1 - HALF_FACTOR * (1 - self.half) - (1 - MIN_COSINE)
            return max(MIN_HALF_COSINE, known)
        if self.control is None:
            return MIN_COSINE
        return min(MIN_COSINE, 1 - CONTROL_FACTOR * (1 - self.control))

    @property
    def problem(self) -> str | None:
        """What is wrong, or None."""
        if self.half is not None:
            if self.mean_cosine >= self.bound:
                return None
            return (
                f"with its float16 body the features have mean cosine {self.mean_cosine:.6f} "
                f"with those of the same graph in float32 (at least {self.bound:.6f} expected)"
            )
        if not self.mean_cosine >= self.bound and self.unexplained:
            return (
                f"with optimizations the features have mean cosine {self.mean_cosine:.6f} with "
                f"those of the graph as written (at least {self.bound:.6f} expected); rounding "
                f"does not explain image {min(self.unexplained)}"
            )
        if lost := self.unexplained & set(self.flipped):
            return (
                f"with optimizations only {self.top1:.2%} of the images keep their class; "
                f"rounding does not explain image {min(lost)}"
            )
        return None

    def with_half(self, known: float | None = None) -> OptimizedRun:
        """The same for a float16 body; `known` is the cosine at export, None for this one."""
        return replace(self, half=self.mean_cosine if known is None else known)


def cosine(a: Array, b: Array) -> Array:
    """Cosine similarity of the rows of two `[n, E]`."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    result: Array = (a * b).sum(axis=1) / np.maximum(norms, 1e-30)
    return result


def compare_optimized(
    source: Bundle | Path, subject: Subject, pixels: Array, written: Array, head: Array | None
) -> OptimizedRun:
    """Run the optimized graph.

    Args:
        source: the bundle, or an ONNX file.
        subject: what it was written from.
        pixels: uint8 `[n, H, W, 3]`.
        written: features of the graph as written, `[m, E]` with m <= n.
        head: zero-shot head `[C, E]`, or None.

    Raises:
        BundleError: the head is of another encoder.
        EngineError: ONNX Runtime is missing or fails.
    """
    if head is not None and head.shape[1] != written.shape[1]:
        raise BundleError(
            f"the text features have {head.shape[1]} numbers and the embeddings "
            f"{written.shape[1]}; they come from different models"
        )
    size = fixed_batch(subject.model) or 8
    features = []
    with load_engine(source) as engine:
        for start in range(0, len(written), size):
            part = pixels[start : min(start + size, len(written))]
            features.append(engine.infer(graph_input(part, subject.preprocess, subject.model)))
    found = np.concatenate(features)
    similar = cosine(found, written)
    top1: float | None = None
    flipped: tuple[int, ...] = ()
    if head is not None:
        same = (found @ head.T).argmax(axis=1) == (written @ head.T).argmax(axis=1)
        top1, flipped = float(same.mean()), tuple(np.flatnonzero(~same).tolist())
    cosines = tuple(similar.tolist())
    return OptimizedRun(top1, float(similar.mean()), float(similar.min()), cosines, flipped)
