"""Multi-head self-attention with a packed QKV linear and RegCache's prefix of cached keys/values.

The prefix (arXiv 2510.04547, section 4) is a constant: keys and values of an averaged sink token,
concatenated in front of the image's own. It has no query, no residual stream and no MLP row.
"""

from __future__ import annotations

import math

import numpy as np

from ..plan import Plan
from .builder import Array, GraphBuilder
from .linear import FloatArray, linear


def prefix_kv(plan: Plan, index: int) -> tuple[FloatArray, FloatArray]:
    """Cached keys and values of block `index`, each `[1, H, tau, d]`.

    One GEMV with the key and value rows of the float QKV weight: the plan's register is a mean of
    LN1 outputs, and the mean commutes with a linear projection. Computed in float64, rounded once.
    """
    spec = plan.encoder
    assert plan.regcache is not None
    weight = plan.weights[f"blocks.{index}.attn.qkv.weight"][spec.width :].astype(np.float64)
    bias = plan.weights[f"blocks.{index}.attn.qkv.bias"][spec.width :].astype(np.float64)
    kv = (weight @ plan.register[index].astype(np.float64) + bias).astype(np.float32)
    shape = (1, spec.heads, plan.regcache.prefix_count, spec.head_dim)
    keys, values = (
        np.broadcast_to(part.reshape(1, spec.heads, 1, spec.head_dim), shape)
        for part in np.split(kv, 2)
    )
    return keys, values


def attention(builder: GraphBuilder, plan: Plan, index: int, x: str) -> str:
    """Add the attention of block `index`, up to the input of its output projection.

    Args:
        builder: graph under construction.
        plan: what to bake.
        index: block.
        x: normed tokens, value `[B, N, D]`.

    Returns:
        Mixed values `[B, N, D]`, heads side by side.
    """
    spec, name = plan.encoder, f"blocks.{index}.attn"
    scale = spec.head_dim**-0.5
    folds = is_power_of_two(scale)
    qkv = linear(
        builder,
        f"{name}.qkv",
        x,
        plan.weights[f"{name}.qkv.weight"],
        plan.weights[f"{name}.qkv.bias"],
        plan.linears.get(f"{name}.qkv"),
        row_scale=_query_scale(spec.width, scale) if folds else None,
    )
    parts = [f"{name}/{part}" for part in ("q", "k", "v")]
    sizes = builder.ints("shape/qkv", [spec.width] * 3)
    builder.node(f"{name}/Split", [qkv, sizes], {"axis": 2}, parts)
    heads = builder.ints("shape/heads", [0, 0, spec.heads, spec.head_dim])
    q, k, v = (
        builder.node(
            f"{part}/Transpose",
            [builder.node(f"{part}/Reshape", [part, heads])],
            {"perm": [0, 2, 1, 3]},
        )
        for part in parts
    )
    if not folds:
        factor = builder.constant("attention_scale", np.asarray(scale, np.float32))
        q = builder.node(f"{name}/q/Mul", [q, factor])
    if plan.regcache and index in plan.regcache.prefix_blocks(spec.depth):
        prefix_k, prefix_v = prefix_kv(plan, index)
        k = _with_prefix(builder, f"{name}/prefix_k", prefix_k, k)
        v = _with_prefix(builder, f"{name}/prefix_v", prefix_v, v)
    k = builder.node(f"{name}/qk/Transpose", [k], {"perm": [0, 1, 3, 2]})
    logits = builder.node(f"{name}/qk/MatMul", [q, k])
    weights = builder.node(f"{name}/Softmax", [logits], {"axis": -1})
    mixed = builder.node(f"{name}/pv/MatMul", [weights, v])
    mixed = builder.node(f"{name}/pv/Transpose", [mixed], {"perm": [0, 2, 1, 3]})
    return builder.node(
        f"{name}/pv/Reshape", [mixed, builder.ints("shape/merged", [0, 0, spec.width])]
    )


def is_power_of_two(value: float) -> bool:
    """Multiplying by it is exact in floating point."""
    return math.frexp(value)[0] == 0.5


def _query_scale(width: int, scale: float) -> FloatArray:
    factors = np.ones(3 * width, np.float32)
    factors[:width] = scale
    return factors


def _with_prefix(builder: GraphBuilder, name: str, prefix: Array, tokens: str) -> str:
    # a batch-1 constant would not concatenate with a batch of B: ONNX's Concat does not broadcast
    constant = builder.constant(name, prefix)
    expanded = builder.node(f"{name}/Expand", [constant, builder.batch_shape(4)])
    return builder.node(f"{name}/Concat", [expanded, tokens], {"axis": 2})
