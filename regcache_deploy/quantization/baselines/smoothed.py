"""A calibrated block behind the smoothing that its linears chose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from regcache_export.passes import Smoothing

from ...encoders.canonical import Encoder
from ..encoder_folds import fold_block
from ..quantizers import Uniform
from ..simulate import LinearQuantization, Quantization
from .base import BlockResult


def smoothed_block(
    encoder: Encoder,
    index: int,
    result: BlockResult,
    factors: Mapping[str, Tensor],
    register: Tensor | None,
) -> BlockResult:
    """Fold factors into what feeds their linears.

    Args:
        encoder: before any fold of this block.
        index: block.
        result: quantizers; those of a linear with factors are for the folded input and weight.
        factors: linear -> `[C_in]`, powers of two.
        register: of the block, before `result`.
    """
    if not factors:
        return result
    fold = Smoothing({name: f.cpu().double().numpy() for name, f in factors.items()})
    before = encoder.replace(result.weights)
    cached = register if result.register is None else result.register
    weights, cached = fold_block(before, index, fold, cached)
    linears = dict(result.quantization.linears)
    out_proj, qkv = f"blocks.{index}.attn.out_proj", f"blocks.{index}.attn.qkv"
    if out_proj in factors and qkv in linears:
        linears[qkv] = _values_divided(linears[qkv], factors[out_proj])
    return replace(
        result,
        quantization=Quantization(linears, result.quantization.matmuls),
        weights={**result.weights, **weights},
        register=cached,
    )


def _values_divided(layer: LinearQuantization, factors: Tensor) -> LinearQuantization:
    """Quantizers of a qkv whose value rows were divided by powers of two: the same codes."""
    weight = layer.weight
    assert isinstance(weight, Uniform)
    rows = 3 * len(factors)
    divisors = weight.scale.new_ones(rows, 1)
    divisors[2 * len(factors) :, 0] = factors.to(weight.scale)
    scale = weight.scale.expand(rows, 1) / divisors
    return replace(
        layer,
        weight=replace(weight, scale=scale, zero_point=weight.zero_point.expand(rows, 1)),
    )
