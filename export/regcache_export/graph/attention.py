"""Multi-head self-attention with a packed QKV linear and RegCache's prefix of cached keys/values.

The prefix (arXiv 2510.04547, section 4) is a constant: keys and values of an averaged sink token,
concatenated in front of the image's own. It has no query, no residual stream and no MLP row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..passes.base import FoldState
from ..targets import AttentionForm
from .builder import Array, FloatArray, GraphBuilder
from .linear import linear
from .published_products import product
from .rotary import Angles, rotate

MICROSOFT = "com.microsoft"
"""Operator domain of ONNX Runtime's own operators."""


def prefix_kv(state: FoldState, index: int) -> tuple[FloatArray, FloatArray]:
    """Cached keys and values of block `index`, each `[1, H, tau, d]`.

    One GEMV with the key and value rows of the float QKV weight: the plan's register is a mean of
    LN1 outputs, and the mean commutes with a linear projection. Computed in float64, rounded once.
    """
    spec, name = state.encoder, f"blocks.{index}.attn.qkv"
    assert state.regcache is not None
    weight = state.double(f"{name}.weight")[spec.width :]
    bias = state.prefix_bias.get(index, state.double(f"{name}.bias"))[spec.width :]
    kv = (weight @ state.register[index].astype(np.float64) + bias).astype(np.float32)
    shape = (1, spec.heads, state.regcache.prefix_count, spec.head_dim)
    keys, values = (
        np.broadcast_to(part.reshape(1, spec.heads, 1, spec.head_dim), shape)
        for part in np.split(kv, 2)
    )
    return keys, values


@dataclass(frozen=True)
class AttentionInputs:
    """Queries, keys and values of one block, on their way into a form of attention.

    Attributes:
        name: `blocks.I.attn`.
        q, k, v: values `[B, N, D]`; q may have one row only.
        scale: factor on the logits that q does not carry yet, or None.
        prefix: cached keys and values `[1, H, tau, d]`, or None.
        log_sizes: what joins the logits, value `[B, 1, 1 or N, T]`, or None.
    """

    name: str
    q: str
    k: str
    v: str
    scale: float | None
    prefix: tuple[FloatArray, FloatArray] | None
    log_sizes: str | None = None


def attention(
    builder: GraphBuilder,
    state: FoldState,
    index: int,
    x: str,
    cls_only: bool = False,
    angles: Angles | None = None,
    log_sizes: str | None = None,
) -> tuple[str, str]:
    """Add the attention of block `index`, up to the input of its output projection.

    Args:
        builder: graph under construction.
        state: what to bake.
        index: block.
        x: normed tokens, value `[B, N, D]`.
        cls_only: queries of token 0 alone.
        angles: of the tokens, where the encoder is rotary.
        log_sizes: what joins the logits, where attention counts merged patches.

    Returns:
        Mixed values `[B, N, D]`, or `[B, 1, D]` with `cls_only`; heads side by side. And the keys
        `[B, N, D]` of the tokens.
    """
    spec, name = state.encoder, f"blocks.{index}.attn"
    qkv = linear(builder, state, f"{name}.qkv", x)
    q, k, v = parts = [f"{name}/{part}" for part in ("q", "k", "v")]
    sizes = builder.ints("shape/qkv", [spec.width] * 3)
    builder.node(f"{name}/Split", [qkv, sizes], {"axis": 2}, parts)
    if angles is not None:
        q, k = (rotate(builder, state, f"{part}/rotary", part, angles) for part in (q, k))
    if cls_only:
        q = first_token(builder, f"{name}/q", q)
    scale = None if state.query_scaled else spec.head_dim**-0.5
    prefix = prefix_kv(state, index) if state.has_prefix(index) else None
    form = ATTENTION_FORMS[builder.target.attention]
    return form(builder, state, AttentionInputs(name, q, k, v, scale, prefix, log_sizes)), k


def first_token(builder: GraphBuilder, name: str, tokens: str) -> str:
    """Token 0 of `[B, N, D]`, as `[B, 1, D]`."""
    start, end, axis = (builder.ints(f"slice/{n}", [v]) for n, v in (("0", 0), ("1", 1), ("a", 1)))
    return builder.node(f"{name}/Slice", [tokens, start, end, axis])


def standard_attention(builder: GraphBuilder, state: FoldState, inputs: AttentionInputs) -> str:
    """MatMul, Softmax, MatMul over `[B, H, N, d]`: standard operators."""
    spec, name = state.encoder, inputs.name
    heads = builder.ints("shape/heads", [0, 0, spec.heads, spec.head_dim])
    q, k, v = (
        builder.node(
            f"{name}/{role}/Transpose",
            [builder.node(f"{name}/{role}/Reshape", [part, heads])],
            {"perm": [0, 2, 1, 3]},
        )
        for role, part in (("q", inputs.q), ("k", inputs.k), ("v", inputs.v))
    )
    if inputs.scale is not None:
        factor = builder.constant("attention_scale", np.asarray(inputs.scale, np.float32))
        q = builder.node(f"{name}/q/Mul", [q, factor])
    if inputs.prefix is not None:
        k = _with_prefix(builder, f"{name}/prefix_k", inputs.prefix[0], k, axis=2)
        v = _with_prefix(builder, f"{name}/prefix_v", inputs.prefix[1], v, axis=2)
    k = builder.node(f"{name}/qk/Transpose", [k], {"perm": [0, 1, 3, 2]})
    logits = product(builder, state, f"{name}.qk", q, k)
    if inputs.log_sizes is not None:
        logits = builder.node(f"{name}/sizes/Add", [logits, inputs.log_sizes])
    weights = builder.node(f"{name}/Softmax", [logits], {"axis": -1})
    mixed = product(builder, state, f"{name}.pv", weights, v)
    mixed = builder.node(f"{name}/pv/Transpose", [mixed], {"perm": [0, 2, 1, 3]})
    return builder.node(
        f"{name}/pv/Reshape", [mixed, builder.ints("shape/merged", [0, 0, spec.width])]
    )


def multi_head_attention(builder: GraphBuilder, state: FoldState, inputs: AttentionInputs) -> str:
    """com.microsoft.MultiHeadAttention over `[B, N, D]`: no Reshape, no Transpose."""
    spec, name = state.encoder, inputs.name
    k, v = inputs.k, inputs.v
    if inputs.prefix is not None:
        rows = (prefix.transpose(0, 2, 1, 3).reshape(1, -1, spec.width) for prefix in inputs.prefix)
        k, v = (
            _with_prefix(builder, f"{name}/prefix_{role}", row, tokens, axis=1)
            for role, row, tokens in zip("kv", rows, (k, v), strict=True)
        )
    return builder.node(
        f"{name}/MultiHeadAttention",
        [inputs.q, k, v, *(["", "", inputs.log_sizes] if inputs.log_sizes is not None else [])],
        {"num_heads": spec.heads, "scale": float(1.0 if inputs.scale is None else inputs.scale)},
        domain=MICROSOFT,
    )


Form = Callable[[GraphBuilder, FoldState, AttentionInputs], str]

ATTENTION_FORMS: dict[AttentionForm, Form] = {
    "standard": standard_attention,
    "multi_head": multi_head_attention,
}


def _with_prefix(builder: GraphBuilder, name: str, prefix: Array, tokens: str, axis: int) -> str:
    # a batch-1 constant would not concatenate with a batch of B: ONNX's Concat does not broadcast
    constant = builder.constant(name, prefix)
    expanded = builder.node(f"{name}/Expand", [constant, builder.batch_shape(prefix.ndim)])
    return builder.node(f"{name}/Concat", [expanded, tokens], {"axis": axis})
