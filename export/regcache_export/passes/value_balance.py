"""Balance of values and out_proj: a scale per channel for the input of out_proj, for free."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .base import Array, Float64, FoldState, PassResult, Stage

MAX_RATIO = 64.0
"""Limit of a channel's factor: a channel that is nearly silent on the calibration images must not
blow up another image's."""


class ValueBalance:
    """`P (V / r) (diag(r) W_o) = P V W_o` for any positive `r` per channel.

    The idea of RepQ-ViT's fold, for the one linear that it leaves per tensor. With `r` from the
    channels' ranges, every channel of out_proj's input fills the codes alike; the price is a
    wider spread in the columns of W_o.

    Args:
        ranges: `blocks.I.attn.out_proj` -> largest absolute value `[D]` of each input channel on
            the calibration images, in floating point.
        strength: 1 equalizes the ranges, 0 does nothing.
    """

    name = "value-balance"
    stage: Stage = "calibration"
    requires = "ranges of out_proj's input, measured in floating point"
    ensures = "channels of out_proj's input have ranges closer to each other"

    def __init__(self, ranges: Mapping[str, Array], strength: float = 0.5) -> None:
        self.ranges, self.strength = ranges, strength

    def __call__(self, state: FoldState) -> PassResult:
        if state.encoder.attn_norm:
            return PassResult(
                state, note="a factor per channel does not pass the norm behind attention"
            )
        width, weights, changed = state.encoder.width, {}, []
        for name, largest in self.ranges.items():
            ratio = balance_ratio(largest, self.strength)
            if (ratio == 1).all():
                continue
            qkv = name.replace("out_proj", "qkv")
            rows = np.ones(3 * width)
            rows[2 * width :] = 1 / ratio
            weights[f"{qkv}.weight"] = state.double(f"{qkv}.weight") * rows[:, None]
            weights[f"{qkv}.bias"] = state.double(f"{qkv}.bias") * rows
            weights[f"{name}.weight"] = state.double(f"{name}.weight") * ratio
            changed.append(name)
        return PassResult(state.changed(weights), tuple(changed))


def balance_ratio(largest: Array, strength: float) -> Float64:
    """Factors `[D]` around 1, from the channels' ranges; powers of two, so that folding is exact.

    Silent channels keep the factor 1.
    """
    peak = np.asarray(largest, dtype=np.float64)
    ratio = np.ones_like(peak)
    heard = peak > 0
    if heard.any():
        middle = np.exp(np.log(peak[heard]).mean())
        exponent = np.rint(strength * np.log2(peak[heard] / middle))
        ratio[heard] = np.clip(2.0**exponent, 1 / MAX_RATIO, MAX_RATIO)
    return ratio
