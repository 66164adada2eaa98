"""Quantizers in numpy float64, beside `reference`: from the constants that a graph stores.

Which kind a quantizer is, its constants tell: `NAME.input_scale` is Q/DQ, `NAME/lower.input_scale`
a twin, `NAME.step` a grid whose zero point is no code, `NAME.levels` log-sqrt2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .published_quant import HALVES, LEVELS

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]

Constants = Mapping[str, Array]

Record = Callable[[str, Float64, Float64], Float64]
"""Told the name of a tensor, its values in steps and its levels; returns those to go on with."""


def quantized(constants: Constants, name: str, x: Float64, offset: int, record: Record) -> Float64:
    """`x` on the grid of the quantizer `name`; `x` itself where the graph has none.

    Args:
        constants: the model's initializers.
        name: of a linear, or `blocks.I.attn/qk/left`.
        x: any shape.
        offset: what is subtracted from the codes of Q/DQ to give levels.
        record: see `Record`.
    """
    if f"{name}.input_scale" in constants:
        return _affine(constants, name, x, offset, record)
    if f"{name}/lower.input_scale" in constants:
        return _twin(constants, name, x, record)
    if f"{name}.step" in constants:
        return _no_code_for_zero(constants, name, x, record)
    if f"{name}.levels" in constants:
        return _log_sqrt2(constants, name, x, record)
    return x


def symmetric(scale: Array, name: str, x: Float64, record: Record) -> Float64:
    """`x` in signed 8-bit codes without a zero point."""
    steps = x / float(scale)
    return record(name, steps, np.clip(np.rint(steps), -128, 127)) * float(scale)


def weight_values(constants: Constants, name: str) -> Float64:
    """The weight `[C_in, C_out]` of a linear, whether it is stored as codes or in float."""
    weight = constants[f"{name}.weight"].astype(np.float64)
    if f"{name}.weight_zero_point" in constants:
        weight = weight - constants[f"{name}.weight_zero_point"].astype(np.float64)
    if f"{name}.weight_scale" in constants:
        weight = weight * constants[f"{name}.weight_scale"].astype(np.float64)
    return weight


def _affine(constants: Constants, name: str, x: Float64, offset: int, record: Record) -> Float64:
    """[Mul, Add, Clip,] QuantizeLinear, DequantizeLinear."""
    scale = float(constants[f"{name}.input_scale"])
    stored = constants[f"{name}.input_zero_point"]
    zero_point, limits = int(stored), np.iinfo(stored.dtype)
    if f"{name}.input_multiplier" in constants:
        x = x * constants[f"{name}.input_multiplier"].astype(np.float64)
    if f"{name}.input_shift" in constants:
        x = x + float(constants[f"{name}.input_shift"])
    if f"{name}.input_min" in constants:
        low, high = (float(constants[f"{name}.input_{end}"]) for end in ("min", "max"))
        x = np.clip(x, low, high)
    steps = x / scale
    codes = np.clip(np.rint(steps) + zero_point, limits.min, limits.max)
    found = record(name, steps + (zero_point - offset), codes - offset)
    return (found + (offset - zero_point)) * scale


def _twin(constants: Constants, name: str, x: Float64, record: Record) -> Float64:
    if f"{name}.split" in constants:
        split = float(constants[f"{name}.split"])
        # a tie where the halves meet, within the same part of a step as everywhere
        steps = 0.5 + (split - x) / float(constants[f"{name}/lower.input_scale"])
        is_lower = record(f"{name}/Less", np.clip(steps, 0, 1), (x < split).astype(np.float64)) > 0
        halves = np.where(is_lower, x, 0), np.where(is_lower, 0, x)
    else:
        halves = np.minimum(x, 0), np.maximum(x, 0)
    lower, upper = (
        _affine(constants, f"{name}/{half}", value, 0, record)
        for half, value in zip(HALVES, halves, strict=True)
    )
    return lower + upper


def _no_code_for_zero(constants: Constants, name: str, x: Float64, record: Record) -> Float64:
    step, low, high = (
        float(constants[f"{name}.{part}"]) for part in ("step", "lowest_level", "highest_level")
    )
    steps = x / step
    return record(name + LEVELS, steps, np.clip(np.rint(steps), low, high)) * step


def _log_sqrt2(constants: Constants, name: str, x: Float64, record: Record) -> Float64:
    table = constants[f"{name}.levels"].astype(np.float64)
    with np.errstate(divide="ignore"):  # the code of 0 is infinite, which the clip takes
        steps = -2 * np.log2(x / float(constants[f"{name}.delta"]))
    last = len(table) - 1
    steps = np.minimum(steps, last)
    codes = np.clip(np.rint(steps), 0, last)
    return table[record(f"{name}/codes", steps, codes).astype(np.int64)]
