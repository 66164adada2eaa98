"""Attention scale into the query rows: `(s q) k = s (q k)`, and one Mul per block less."""

from __future__ import annotations

import numpy as np

from .base import FoldState, PassResult, Stage, linear_names


class AttentionScale:
    """`1/sqrt(d)` becomes a factor on the query rows of qkv.

    On a quantized weight it multiplies the rows' scales, never the codes; so it runs at export.
    For d = 64 the factor is a power of two, and not even a rounding changes.
    """

    name = "attention-scale"
    stage: Stage = "export"
    requires = "attention logits are multiplied by 1/sqrt(d)"
    ensures = "attention logits need no factor"

    def __call__(self, state: FoldState) -> PassResult:
        width = state.encoder.width
        factors = np.ones(3 * width)
        factors[:width] = state.encoder.head_dim**-0.5
        names = linear_names(state, "attn.qkv")
        scales = {name: factors * state.row_scale.get(name, 1.0) for name in names}
        merged = {**state.row_scale, **scales}
        return PassResult(state.changed({}, row_scale=merged, query_scaled=True), tuple(names))
