"""Smoothing (SmoothQuant, arXiv 2211.10438): what the input of a linear loses, its weight gains."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .base import Float64, FoldState, PassResult, Stage
from .reparametrization import NORMS

FOLDED_ROLES = (*NORMS, "attn.out_proj")
"""Linears whose input factors cost nothing: a LayerNorm or the values take them."""


class Smoothing:
    """`W x = (W diag(s)) (x / s)` per channel, s positive.

    Division by s is free in the LayerNorm in front of qkv and fc1, and in the value rows in front
    of out_proj: `P (V / s) = (P V) / s`. The cached register is a mean of LayerNorm outputs and
    follows them; cached values are projections of it and follow the value rows. fc2's factors stay
    in the graph (`regcache_export.treated`). Powers of two change no digit of any number.

    Args:
        factors: `blocks.I.ROLE`, a role of `FOLDED_ROLES` -> s, `[C_in]`.
    """

    name = "smoothing"
    stage: Stage = "calibration"
    requires = (
        "a LayerNorm with weights in front that this linear alone reads, or attention and nothing "
        "behind it"
    )
    ensures = "the linear's input is divided by the factors"

    def __init__(self, factors: Mapping[str, Float64]) -> None:
        self.factors = factors

    def __call__(self, state: FoldState) -> PassResult:
        for name, factors in self.factors.items():
            _, block, role = name.split(".", 2)
            columns = {f"{name}.weight": state.double(f"{name}.weight") * factors}
            state = state.changed(columns)
            if role == "attn.out_proj":
                state = _divide_values(state, f"blocks.{block}.attn.qkv", factors)
                continue
            norm = f"blocks.{block}.{NORMS[role]}"
            parts = (f"{norm}.weight", f"{norm}.bias")
            state = state.changed({part: state.double(part) / factors for part in parts})
            if role == "attn.qkv" and int(block) in state.register:
                mean = np.asarray(state.register[int(block)], dtype=np.float64)
                register = {**state.register, int(block): mean / factors}
                state = state.changed({}, register=register)
        return PassResult(state, tuple(self.factors))


def _divide_values(state: FoldState, qkv: str, factors: Float64) -> FoldState:
    rows = np.ones(3 * state.encoder.width)
    rows[2 * state.encoder.width :] = 1 / factors
    weights = {
        f"{qkv}.weight": state.double(f"{qkv}.weight") * rows[:, None],
        f"{qkv}.bias": state.double(f"{qkv}.bias") * rows,
    }
    return state.changed(weights)
