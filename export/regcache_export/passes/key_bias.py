"""Key bias dropped: it adds the same number to all logits of a query, and softmax ignores that."""

from __future__ import annotations

from .base import FoldState, PassResult, Stage, linear_names


class KeyBias:
    """`q (k + b) = q k + q b`, and `q b` does not depend on the key.

    The cached keys follow: they are the same projection of the register, without the bias. Not for
    a rotary encoder, whose bias is turned with each key, and not in a block whose keys decide which
    tokens are merged: a cosine does depend on it.
    """

    name = "key-bias"
    stage: Stage = "calibration"
    requires = "plain softmax over all keys, prefix included; no rotary positions; no merge by keys"
    ensures = (
        "the key third of the qkv bias is zero in every block where nothing else reads the keys"
    )

    def __call__(self, state: FoldState) -> PassResult:
        if state.encoder.rotary:
            return PassResult(state, note="rotary positions turn the bias with each key")
        width, weights, changed = state.encoder.width, {}, []
        for index, name in enumerate(linear_names(state, "attn.qkv")):
            if state.merge is not None and state.merge.by_keys(index):
                continue
            bias = state.double(f"{name}.bias").copy()
            if bias[width : 2 * width].any():
                bias[width : 2 * width] = 0
                weights[f"{name}.bias"] = bias
                changed.append(name)
        return PassResult(state.changed(weights), tuple(changed))
