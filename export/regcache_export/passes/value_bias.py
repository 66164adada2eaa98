"""Value bias into the output bias: the rows of a softmax sum to 1."""

from __future__ import annotations

from .base import FoldState, PassResult, Stage, linear_names


class ValueBias:
    """`P (V + 1 b) W_o = P V W_o + b W_o`.

    The input of out_proj loses a constant, so its range changes: before calibration.
    """

    name = "value-bias"
    stage: Stage = "calibration"
    requires = (
        "attention weights of every query sum to 1, prefix included; nothing between attention "
        "and out_proj"
    )
    ensures = "the value third of every qkv bias is zero"

    def __call__(self, state: FoldState) -> PassResult:
        if state.encoder.attn_norm:
            return PassResult(state, note="a constant does not pass the norm behind attention")
        width, weights, changed = state.encoder.width, {}, []
        for name in linear_names(state, "attn.qkv"):
            bias = state.double(f"{name}.bias").copy()
            value = bias[2 * width :].copy()
            if not value.any():
                continue
            out = name.replace("qkv", "out_proj")
            bias[2 * width :] = 0
            weights[f"{name}.bias"] = bias
            weights[f"{out}.bias"] = state.double(f"{out}.bias") + (
                state.double(f"{out}.weight") @ value
            )
            changed.append(name)
        return PassResult(state.changed(weights), tuple(changed))
