"""The convolutional stem's nodes: standard operators in floating point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..passes.base import FoldState
from ..stem import StemStep
from .builder import GraphBuilder
from .float_layers import float_constant, gelu, layer_norm


def stem(builder: GraphBuilder, state: FoldState, image: str) -> str:
    """Image `[B, 3, H, W]` to a map `[B, D, rows, columns]`."""
    return _run(builder, state, state.encoder.stem, "stem", image)


def _run(
    builder: GraphBuilder, state: FoldState, steps: Sequence[StemStep], name: str, x: str
) -> str:
    for index, step in enumerate(steps):
        x = _step(builder, state, step, f"{name}.{index}", x)
    return x


def _step(builder: GraphBuilder, state: FoldState, step: StemStep, name: str, x: str) -> str:
    if step.kind == "residual":
        body = _run(builder, state, step.body, f"{name}.body", x)
        return builder.node(
            f"{name}/Add", [body, _run(builder, state, step.shortcut, f"{name}.shortcut", x)]
        )
    window: dict[str, Any] = {
        "kernel_shape": [step.kernel] * 2,
        "strides": [step.stride] * 2,
        "pads": [step.padding] * 4,
    }
    if step.kind == "avg_pool":
        return builder.node(f"{name}/AveragePool", [x], window)
    if step.kind in ("gelu", "gelu_tanh"):
        return gelu(builder, step.kind, name, x)
    weight, bias = (state.weights[f"{name}.{part}"] for part in ("weight", "bias"))
    if step.kind == "norm":
        # the operator normalizes the last axes
        x = builder.node(f"{name}/to_last/Transpose", [x], {"perm": [0, 2, 3, 1]})
        x = layer_norm(builder, name, x, weight, bias, step.eps)
        return builder.node(f"{name}/to_first/Transpose", [x], {"perm": [0, 3, 1, 2]})
    parameters = [
        float_constant(builder, f"{name}.{part}", value)
        for part, value in (("weight", weight), ("bias", bias))
    ]
    return builder.node(f"{name}/Conv", [x, *parameters], window | {"group": step.groups})
