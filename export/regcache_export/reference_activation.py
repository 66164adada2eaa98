"""The encoder's activation functions in numpy float64, beside `reference`."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from .graph.names import QUICK_GELU_FACTOR

Float64 = npt.NDArray[np.float64]


def activation(kind: str, x: Float64, factor: float = QUICK_GELU_FACTOR) -> Float64:
    """The encoder's MLP activation in float64; `factor` is that of `quick_gelu`.

    The gated ones halve the last axis: the first half is the gate.
    """
    if kind == "geglu":
        x, value = np.split(x, 2, axis=-1)
        return activation("gelu", x) * value
    if kind == "swiglu":
        x, value = np.split(x, 2, axis=-1)
        with np.errstate(over="ignore"):
            gated: Float64 = x / (1 + np.exp(-x)) * value
        return gated
    if kind == "quick_gelu":
        with np.errstate(over="ignore"):  # far below zero the gate is closed
            gate = 1 / (1 + np.exp(-factor * x))
    elif kind == "gelu_tanh":
        gate = 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    else:
        gate = 0.5 * (1 + erf(x / math.sqrt(2)))
    result: Float64 = x * gate
    return result


_STEP = 1 / 256
_GRID = np.arange(0, 6 + 2 * _STEP, _STEP)
_ERF_GRID = np.array([math.erf(value) for value in _GRID])


def erf(x: Float64) -> Float64:
    """Error function, within 1e-14: numpy has none.

    Taylor series of fifth order around the nearest of a grid of exact values.
    """
    size = np.minimum(np.abs(x), 6.0)  # erf(6) is 1 in float64
    index = np.rint(size / _STEP).astype(np.int64)
    a = _GRID[index]
    d = size - a
    slope = (2 / math.sqrt(math.pi)) * np.exp(-a * a)
    series = 1 - a * d + (2 * a**2 - 1) / 3 * d**2 + (3 * a - 2 * a**3) / 6 * d**3
    series += (4 * a**4 - 12 * a**2 + 3) / 30 * d**4
    result: Float64 = np.sign(x) * (_ERF_GRID[index] + slope * d * series)
    return result
