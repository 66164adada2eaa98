"""Between the simulation's quantizers and a plan that holds them as published."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from regcache_export.published_quant import Kind, PublishedQuant

from ..errors import ConfigError
from .nonuniform import LogSqrt2, TwinGelu, TwinSoftmax
from .quantizers import Quantizer, Uniform
from .simulate import Quantization

Pairs = dict[str, tuple[PublishedQuant, PublishedQuant]]


def split_published(quantization: Quantization, strict: bool) -> tuple[Pairs, Quantization]:
    """What a plan must hold as published, and the rest, which Q/DQ holds.

    Without `strict`, nothing is taken out. With it, every attention product goes, and each linear
    of which a quantizer is not Q/DQ.

    Raises:
        ConfigError: a quantizer of a kind that is not known.
    """
    if not strict:
        return {}, quantization
    pairs: Pairs = {
        name: (to_published(left), to_published(right))
        for name, (left, right) in quantization.matmuls.items()
    }
    for name, layer in quantization.linears.items():
        pair = to_published(layer.input), to_published(layer.weight)
        if any(quant.standard is None for quant in pair):
            pairs[name] = pair
    return pairs, Quantization(quantization.without(pairs).linears)


def to_published(quantizer: Quantizer) -> PublishedQuant:
    """Raises ConfigError for a quantizer of no known kind."""
    if isinstance(quantizer, Uniform):
        return PublishedQuant(
            "uniform",
            _array(quantizer.scale),
            _array(quantizer.zero_point),
            np.zeros(1, np.float32),
            quantizer.bits,
            quantizer.signed,
        )
    if isinstance(quantizer, TwinGelu):
        steps = quantizer.negative_scale, quantizer.scale
        return _special("twin_gelu", *steps, quantizer.bits)
    if isinstance(quantizer, TwinSoftmax):
        half = 2 ** (quantizer.bits - 1)
        lower, upper = torch.tensor(quantizer.split / half), torch.tensor(1 / half)
        return _special("twin_softmax", lower, upper, quantizer.bits)
    if isinstance(quantizer, LogSqrt2):
        return _special("log_sqrt2", torch.tensor(0.0), quantizer.delta, quantizer.bits)
    raise ConfigError(f"no graph has a quantizer of the kind {type(quantizer).__name__}")


def of_published(quant: PublishedQuant) -> Quantizer:
    """The inverse of `to_published`."""
    scale, second = (torch.from_numpy(np.array(v)) for v in (quant.scale, quant.second))
    if quant.kind == "uniform":
        shape = (-1, 1) if scale.numel() > 1 else ()
        zero_point = torch.from_numpy(np.array(quant.zero_point))
        return Uniform(scale.reshape(shape), zero_point.reshape(shape), quant.bits, quant.signed)
    if quant.kind == "twin_gelu":
        minimum = -float(second) * 2 ** (quant.bits - 1)
        return TwinGelu(scale.reshape(()), minimum, quant.bits)
    if quant.kind == "twin_softmax":
        return TwinSoftmax(float(quant.split), quant.bits)
    return LogSqrt2(scale.reshape(()), quant.bits)


def _special(kind: Kind, second: Tensor, scale: Tensor, bits: int) -> PublishedQuant:
    values = _array(scale)
    return PublishedQuant(kind, values, np.zeros_like(values), _array(second), bits)


def _array(tensor: Tensor) -> npt.NDArray[np.float32]:
    return tensor.detach().cpu().to(torch.float32).flatten().numpy()
