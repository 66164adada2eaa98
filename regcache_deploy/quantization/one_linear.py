"""The encoder with one linear quantized at a time; blocks in front of it run once for all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from torch import Tensor

from ..encoders.canonical import FLOAT, Encoder, Numerics
from ..encoders.regcache import RegCache
from ..encoders.rotary import Survivors
from .simulate import Quantization, SimulatedNumerics

FLOAT_ONLY = ""
"""Stands for no linear at all."""


def numerics_of(quantization: Quantization, names: Iterable[str]) -> dict[str, Numerics]:
    """Linear -> numerics in which it alone is quantized; they keep its quantized weight."""
    return {name: SimulatedNumerics(quantization.only(name)) for name in names}


def one_at_a_time(
    encoder: Encoder,
    numerics: dict[str, Numerics],
    tokens: Tensor,
    regcache: RegCache | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Embeddings `[B, E]` for every linear of `numerics`, in the encoder's order.

    Args:
        encoder: in floating point, with the folds that the quantizers belong to.
        numerics: of `numerics_of`.
        tokens: `[B, N, D]` at the input of block 0.
        regcache: prefix and deletion to be active.

    Yields:
        A linear's name and the embeddings with it alone quantized; `FLOAT_ONLY` last.
    """
    state, survivors = tokens, Survivors()
    for block in range(encoder.spec.depth):
        for name in (n for n in encoder.spec.linears() if n.startswith(f"blocks.{block}.")):
            if name in numerics:
                own = replace(survivors)
                after = encoder.run_blocks(
                    state, block, None, numerics[name], regcache, survivors=own
                )
                yield name, encoder.pool(after, own)
        state = encoder.block(block, state, FLOAT, regcache, survivors)
    yield FLOAT_ONLY, encoder.pool(state, survivors)
