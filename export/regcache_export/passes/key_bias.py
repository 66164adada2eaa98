"""Key bias dropped: it adds the same number to all logits of a query, and softmax ignores that."""

from __future__ import annotations

from .base import FoldState, PassResult, Stage, linear_names


class KeyBias:
    """`q (k + b) = q k + q b`, and `q b` does not depend on the key.

    The cached keys follow: they are the same projection of the register, without the bias.
    """

    name = "key-bias"
    stage: Stage = "calibration"
    requires = "plain softmax over all keys, prefix included"
    ensures = "the key third of every qkv bias is zero"

    def __call__(self, state: FoldState) -> PassResult:
        width, weights, changed = state.encoder.width, {}, []
        for name in linear_names(state, "attn.qkv"):
            bias = state.double(f"{name}.bias").copy()
            if bias[width : 2 * width].any():
                bias[width : 2 * width] = 0
                weights[f"{name}.bias"] = bias
                changed.append(name)
        return PassResult(state.changed(weights), tuple(changed))
