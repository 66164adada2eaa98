"""A convolutional stem in numpy float64, beside `reference`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from .reference_activation import activation
from .stem import StemStep

Float64 = npt.NDArray[np.float64]
Constant = Callable[[str], Float64]


def run_stem(
    steps: Sequence[StemStep], constant: Constant, x: Float64, name: str = "stem"
) -> Float64:
    """Maps `[B, C, H, W]` through the steps; `constant` gives weights by name."""
    for index, step in enumerate(steps):
        x = _step(step, constant, x, f"{name}.{index}")
    return x


def _step(step: StemStep, constant: Constant, x: Float64, name: str) -> Float64:
    if step.kind == "residual":
        body = run_stem(step.body, constant, x, f"{name}.body")
        return body + run_stem(step.shortcut, constant, x, f"{name}.shortcut")
    if step.kind in ("gelu", "gelu_tanh"):
        return activation(step.kind, x)
    if step.kind == "avg_pool":
        counted = _total(np.ones_like(x[:1, :1]), step)
        return _total(x, step) / counted
    weight, bias = (constant(f"{name}.{part}") for part in ("weight", "bias"))
    if step.kind == "norm":
        centred = x - x.mean(axis=1, keepdims=True)
        x = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + step.eps)
        return x * weight[:, None, None] + bias[:, None, None]
    return _convolution(step, weight, x) + bias[:, None, None]


def _total(x: Float64, step: StemStep) -> Float64:
    return sum(_windows(x, step), np.zeros(()))


def _convolution(step: StemStep, weight: Float64, x: Float64) -> Float64:
    """One product for each place in the window, groups side by side."""
    batch, groups = len(x), step.groups
    # [k * k, groups, outputs, inputs]
    parts = weight.reshape(groups, -1, weight.shape[1], step.kernel**2).transpose(3, 0, 1, 2)
    total = np.zeros(())
    for part, seen in zip(parts, _windows(x, step), strict=True):
        total = total + part @ seen.reshape(batch, groups, part.shape[2], -1)
    rows, columns = seen.shape[2:]
    return np.reshape(total, (batch, -1, rows, columns))


def _windows(x: Float64, step: StemStep) -> Iterator[Float64]:
    """What each place of the window sees, row by row: `[B, C, H', W']`."""
    sides = [(0, 0), (0, 0), (step.padding, step.padding), (step.padding, step.padding)]
    padded = np.pad(x, sides)
    rows, columns = (1 + (side - step.kernel) // step.stride for side in padded.shape[2:])
    for i in range(step.kernel):
        for j in range(step.kernel):
            yield padded[:, :, i :: step.stride, j :: step.stride][:, :, :rows, :columns]
