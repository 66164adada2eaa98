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
    parameters = [
        float_constant(builder, f"{name}.{part}", state.weights[f"{name}.{part}"])
        for part in ("weight", "bias")
    ]
    return builder.node(
        f"{name}/LayerNormalization",
        [x, *parameters],
        {"axis": -1, "epsilon": state.encoder.norm_eps},
    )


def activation(builder: GraphBuilder, state: FoldState, name: str, x: str) -> str:
    """The encoder's MLP activation."""
    kind = state.encoder.activation
    if kind == "quick_gelu":
        factor = builder.constant("quick_gelu_factor", np.asarray(QUICK_GELU_FACTOR, np.float32))
        gate = builder.node(f"{name}/gate/Mul", [x, factor])
        gate = builder.node(f"{name}/Sigmoid", [gate])
        return builder.node(f"{name}/Mul", [x, gate])
    if kind == "swiglu":
        half = np.asarray([state.encoder.mlp_width] * 2, np.int64)
        sizes = builder.constant("swiglu_halves", half)
        gate, value = f"{name}/gate", f"{name}/value"
        builder.node(f"{name}/Split", [x, sizes], {"axis": -1}, [gate, value])
        open_share = builder.node(f"{name}/Sigmoid", [gate])
        gate = builder.node(f"{name}/gate/Mul", [gate, open_share])
        return builder.node(f"{name}/Mul", [gate, value])
    approximate = "tanh" if kind == "gelu_tanh" else "none"
    return builder.node(f"{name}/Gelu", [x], {"approximate": approximate})


def gemm(builder: GraphBuilder, name: str, x: str, weight: Array, bias: Array) -> str:
    """A float linear on vectors: `x [B, C_in]`, `weight [C_out, C_in]`, `bias [C_out]`."""
    inputs = [x, float_constant(builder, f"{name}.weight", weight.T)]
    if bias.any():
        inputs.append(float_constant(builder, f"{name}.bias", bias))
    return builder.node(f"{name}/Gemm", inputs)
