"""Whether rounding noise explains what the optimized graph does otherwise than the written one.

Float sums in another order move a value across a rounding tie now and then, and at few bits one
code moves an image's features by per cents. So where the usual bounds are missed, the float64
reference runs freely on the same images, first as it is, then with noise of float32's size in every
block's input. An image counts as explained where one of these moves it about as far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .certificate import Subject
from .optimized import CONTROL_FACTOR, OptimizedRun, cosine
from .reference import Array, initializers
from .reference_pool import pooled_features
from .survivors import Left
from .trace import graph_input

DRAWS = 16
"""At most so many runs with noise. One run may just miss the tie that decides."""

NOISE = 2.0**-19
"""Relative size of the noise: 16 units in the last place of float32, as sums of some hundred terms
in another order and a fused operator's polynomials differ by."""

BATCH = 8


def controlled(
    run: OptimizedRun, subject: Subject, pixels: Array, written: Array, head: Array | None
) -> OptimizedRun:
    """The same with the control measured, where it is needed.

    Args:
        run: of the optimized graph.
        subject: what was written.
        pixels: uint8 `[n, H, W, 3]`, n as many as `written` has.
        written: features of the graph as written, `[n, E]`.
        head: zero-shot head `[C, E]`, or None.
    """
    if run.near:
        return run
    exact = free_run(subject, pixels)
    images = list(range(len(written)))
    run = replace(run, control=float(cosine(written, exact).mean()))
    run = _explained(run, images, written, exact, head)
    for draw in range(DRAWS):
        images = sorted(run.unexplained)
        if run.problem is None or not images:
            break
        noisy = free_run(subject, pixels[images], NOISE, seed=draw)
        run = _explained(run, images, written, noisy, head)
    return run


def free_run(subject: Subject, pixels: Array, noise: float = 0.0, seed: int = 0) -> Array:
    """Features `[n, E]` of the numpy reference on its own, nothing forced, in float64.

    Args:
        subject: what was written.
        pixels: uint8 `[n, H, W, 3]`.
        noise: relative size of normal noise in the input of every block.
        seed: of the noise.
    """
    generator = np.random.default_rng(seed)
    reference = subject.reference(initializers(subject.model))
    features = []
    for start in range(0, len(pixels), BATCH):
        image = graph_input(pixels[start : start + BATCH], subject.preprocess, subject.model)
        tokens: Array = reference.embed(image)
        left = Left(subject.spec.num_patches)
        for index in range(subject.spec.depth):
            if noise:
                tokens = tokens * (1 + noise * generator.standard_normal(tokens.shape))
            simulated = reference.block(index, tokens, left=left)
            tokens = simulated.output
            if simulated.positions is not None:
                left = left.deleted(simulated.positions)
            if simulated.pairs is not None:
                left = left.merged(simulated.pairs)
        features.append(pooled_features(reference, tokens, left))
    return np.concatenate(features)


def _explained(
    run: OptimizedRun, images: Sequence[int], written: Array, moved: Array, head: Array | None
) -> OptimizedRun:
    """`run` with those of `images` explained that a control, `moved [len(images), E]`, explains."""
    before = written[list(images)]
    loss = CONTROL_FACTOR * (1 - cosine(before, moved))
    found = set(run.explained)
    for place, image in enumerate(images):
        if image not in run.off or not 1 - run.cosines[image] <= loss[place]:
            continue
        if image in run.flipped and head is not None:
            logits, other = _logits(before[place], head), _logits(moved[place], head)
            second, first = np.sort(logits)[-2:]
            if first - second > CONTROL_FACTOR * np.abs(other - logits).max():
                continue
        found.add(image)
    return replace(run, explained=tuple(sorted(found)))


def _logits(features: Array, head: Array) -> Array:
    """Cosine similarities `[C]` with the classes, up to the norm of their rows."""
    wide = features.astype(np.float64)
    result: Array = head.astype(np.float64) @ (wide / max(float(np.linalg.norm(wide)), 1e-30))
    return result
