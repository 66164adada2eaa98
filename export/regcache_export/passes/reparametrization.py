"""Scale reparametrization (RepQ-ViT, section 3.2): per-channel codes behind one scale."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .base import Float64, FoldState, PassResult, Stage

NORMS = {"attn.qkv": "norm1", "mlp.fc1": "norm2"}
"""Linears whose input is a LayerNorm's output, and that LayerNorm."""


class Reparametrization:
    """`W x + b = (W diag(r)) ((x + c) / r) + (b - W c)` per channel, r positive.

    With r and c from per-channel ranges, one scale and one zero point give every channel the codes
    of its own asymmetric quantizer. `(x + c) / r` is free in the LayerNorm that makes x. The
    cached register, a mean of LayerNorm outputs, is folded like them. Which r and c is the
    baseline's choice, made on its calibration images.

    Args:
        channels: `blocks.I.attn.qkv` or `blocks.I.mlp.fc1` -> r and c, float64 `[D]` each.
    """

    name = "reparametrization"
    stage: Stage = "calibration"
    requires = "a LayerNorm in front, read by this linear alone"
    ensures = "the channels of the linear's input share one range"

    def __init__(self, channels: Mapping[str, tuple[Float64, Float64]]) -> None:
        self.channels = channels

    def __call__(self, state: FoldState) -> PassResult:
        weights, register = {}, dict(state.register)
        for name, (ratio, shift) in self.channels.items():
            _, block, role = name.split(".", 2)
            norm = f"blocks.{block}.{NORMS[role]}"
            weights[f"{norm}.weight"] = state.double(f"{norm}.weight") / ratio
            weights[f"{norm}.bias"] = fold_input(state.double(f"{norm}.bias"), ratio, shift)
            weights[f"{name}.weight"], weights[f"{name}.bias"] = fold_linear(
                state.double(f"{name}.weight"), state.double(f"{name}.bias"), ratio, shift
            )
            if role == "attn.qkv" and int(block) in register:
                mean = np.asarray(register[int(block)], dtype=np.float64)
                register[int(block)] = fold_input(mean, ratio, shift)
        return PassResult(state.changed(weights, register=register), tuple(self.channels))


def fold_input(x: Float64, ratio: Float64, shift: Float64) -> Float64:
    """The linear's new input from the old one, `[..., D]`."""
    return (x + shift) / ratio


def fold_linear(
    weight: Float64, bias: Float64, ratio: Float64, shift: Float64
) -> tuple[Float64, Float64]:
    """Weight `[C_out, D]` and bias `[C_out]` that undo `fold_input`."""
    return weight * ratio, bias - weight @ shift
