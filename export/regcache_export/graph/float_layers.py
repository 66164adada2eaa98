"""Small floating-point parts that embedding, blocks and pooling share."""

from __future__ import annotations

import numpy as np

from ..passes.base import FoldState
from .builder import Array, GraphBuilder
from .names import QUICK_GELU_FACTOR


def float_constant(builder: GraphBuilder, name: str, value: Array) -> str:
    """A float32 initializer."""
    return builder.constant(name, value.astype(np.float32))


def norm(builder: GraphBuilder, state: FoldState, name: str, x: str) -> str:
    """LayerNorm over the last axis with the weights `name.weight` and `name.bias`."""
    weight, bias = (state.weights[f"{name}.{part}"] for part in ("weight", "bias"))
    return layer_norm(builder, name, x, weight, bias, state.encoder.norm_eps)


def layer_norm(
    builder: GraphBuilder, name: str, x: str, weight: Array, bias: Array, eps: float
) -> str:
    """LayerNorm over the last axis, `weight` and `bias` `[D]`."""
    parameters = [
        float_constant(builder, f"{name}.{part}", value)
        for part, value in (("weight", weight), ("bias", bias))
    ]
    return builder.node(
        f"{name}/LayerNormalization", [x, *parameters], {"axis": -1, "epsilon": eps}
    )


def plain_norm(builder: GraphBuilder, state: FoldState, name: str, x: str, width: int) -> str:
    """LayerNorm over the last axis, of `width`, without weights."""
    # the operator wants a scale; the bias may be left out
    ones = float_constant(builder, f"norm.ones_{width}", np.ones(width))
    return builder.node(
        f"{name}/LayerNormalization",
        [x, ones],
        {"axis": -1, "epsilon": state.encoder.norm_eps},
    )


def activation(builder: GraphBuilder, state: FoldState, name: str, x: str) -> str:
    """The encoder's MLP activation."""
    kind = state.encoder.activation
    if not state.encoder.gated:
        return gelu(builder, kind, name, x)
    half = np.asarray([state.encoder.mlp_width] * 2, np.int64)
    sizes = builder.constant(f"{kind}_halves", half)
    gate, value = f"{name}/gate", f"{name}/value"
    builder.node(f"{name}/Split", [x, sizes], {"axis": -1}, [gate, value])
    if kind == "geglu":
        gate = gelu(builder, "gelu", f"{name}/gate", gate)
    else:
        open_share = builder.node(f"{name}/Sigmoid", [gate])
        gate = builder.node(f"{name}/gate/Mul", [gate, open_share])
    return builder.node(f"{name}/Mul", [gate, value])


def gelu(builder: GraphBuilder, kind: str, name: str, x: str) -> str:
    """GELU, its tanh form, or QuickGELU."""
    if kind == "quick_gelu":
        factor = builder.constant("quick_gelu_factor", np.asarray(QUICK_GELU_FACTOR, np.float32))
        gate = builder.node(f"{name}/gate/Mul", [x, factor])
        gate = builder.node(f"{name}/Sigmoid", [gate])
        return builder.node(f"{name}/Mul", [x, gate])
    approximate = "tanh" if kind == "gelu_tanh" else "none"
    return builder.node(f"{name}/Gelu", [x], {"approximate": approximate})


def gemm(builder: GraphBuilder, name: str, x: str, weight: Array, bias: Array) -> str:
    """A float linear on vectors: `x [B, C_in]`, `weight [C_out, C_in]`, `bias [C_out]`."""
    inputs = [x, float_constant(builder, f"{name}.weight", weight.T)]
    if bias.any():
        inputs.append(float_constant(builder, f"{name}.bias", bias))
    return builder.node(f"{name}/Gemm", inputs)
