"""A quantizer in the simulation, stage by stage as a graph with Q/DQ has it.

The names of the stages are those of `regcache_export.published_quant.CODE_TENSORS`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from regcache_export.published_quant import HALVES, LEVELS

from ..errors import ConfigError
from .nonuniform import LogSqrt2, TwinGelu, TwinSoftmax
from .quantizers import Quantizer, Uniform
from .strict_plan import to_published

Record = Callable[[str, Tensor, Tensor], Tensor]
"""Told the name of a stage, its values in steps and its levels; returns those to go on with."""


def traced(name: str, quantizer: Quantizer, x: Tensor, record: Record) -> Tensor:
    """`quantizer(x)`, with every stage shown to `record`.

    Raises:
        ConfigError: a quantizer of no known kind.
    """
    if isinstance(quantizer, Uniform):
        return _uniform(name, quantizer, x, record)
    if isinstance(quantizer, LogSqrt2):
        return _log_sqrt2(name, quantizer, x, record)
    if isinstance(quantizer, TwinGelu):
        scales = quantizer.negative_scale, quantizer.scale
        values = x.clamp_max(0), x.clamp_min(0)
    elif isinstance(quantizer, TwinSoftmax):
        half = 2 ** (quantizer.bits - 1)
        scales = torch.tensor(quantizer.split / half), torch.tensor(1 / half)
        # a tie where the halves meet, within the same part of a step as everywhere
        steps = 0.5 + (quantizer.split - x) / scales[0]
        lower = record(f"{name}/Less", steps.clamp(0, 1), (x < quantizer.split).to(x.dtype)) > 0
        values = x.where(lower, 0), x.where(~lower, 0)
    else:
        raise ConfigError(f"no graph has a quantizer of the kind {type(quantizer).__name__}")
    halves = [
        _uniform(f"{name}/{half}", _signed(scale, quantizer.bits), value, record)
        for half, scale, value in zip(HALVES, scales, values, strict=True)
    ]
    return halves[0] + halves[1]


def _signed(scale: Tensor, bits: int) -> Uniform:
    return Uniform(scale, torch.zeros_like(scale), bits, signed=True)


def _uniform(name: str, quantizer: Uniform, x: Tensor, record: Record) -> Tensor:
    steps, (low, high) = x / quantizer.scale, quantizer.code_range
    if to_published(quantizer).standard is None:
        zero = quantizer.zero_point
        levels = torch.round(steps).clamp(low - zero, high - zero)
        return record(name + LEVELS, steps, levels) * quantizer.scale
    origin = 0 if quantizer.signed else 2 ** (quantizer.bits - 1)
    shift = quantizer.zero_point - origin
    found = record(name, steps + shift, quantizer.codes(x) - origin)
    return (found - shift) * quantizer.scale


def _log_sqrt2(name: str, quantizer: LogSqrt2, x: Tensor, record: Record) -> Tensor:
    # in float32 a level below its least normal number is zero, in the graph as well
    levels = quantizer.decode(torch.arange(2**quantizer.bits, dtype=torch.float32))
    last = int((levels >= torch.finfo(torch.float32).tiny).sum())
    steps = -2 * torch.log2(x / quantizer.delta)
    codes = record(f"{name}/codes", steps.clamp_max(last), quantizer.codes(x).clamp_max(last))
    return torch.where(codes < last, quantizer.decode(codes), 0)
