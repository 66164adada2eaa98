"""From the tokens after the last block to one embedding: class token, mean, or attention pooling.

Pooling and projection stay in floating point.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..passes.base import FoldState
from .builder import Array, GraphBuilder
from .float_layers import activation, float_constant, gemm, norm
from .tokens import leave_island


def pool(builder: GraphBuilder, state: FoldState, tokens: str, sizes: str | None = None) -> str:
    """Tokens `[B, N, D]` to embeddings `[B, E]`.

    `sizes` says how many patches each stands for, value `[B, N, 1]`; a mean counts every patch.
    """
    spec = state.encoder
    if spec.pool == "cls":
        # LayerNorm works token by token: only the pooled token needs it
        token = builder.constant("cls_position", np.asarray(0, np.int64))
        pooled = builder.node("pool/Gather", [tokens, token], {"axis": 1})
        if spec.final_norm != "none":
            pooled = norm(builder, state, "norm", pooled)
    else:
        if spec.num_prefix_tokens and not spec.pool_include_prefix:
            tokens = _without_prefix_tokens(builder, state, "pool", tokens)
            if sizes is not None:
                sizes = _without_prefix_tokens(builder, state, "pool.merge", sizes)
        if spec.final_norm == "before_pool":
            tokens = norm(builder, state, "norm", tokens)
        if spec.pool == "map":
            pooled = _map(builder, state, tokens, sizes)
        elif sizes is not None:
            pooled = _weighted_mean(builder, tokens, sizes)
        else:
            axes = builder.ints("axes/tokens", [1])
            pooled = builder.node("pool/ReduceMean", [tokens, axes], {"keepdims": 0})
        if spec.final_norm == "after_pool":
            pooled = norm(builder, state, "norm", pooled)
    if not spec.projection:
        return pooled
    return gemm(builder, "proj", pooled, state.weights["proj.weight"], state.weights["proj.bias"])


def _without_prefix_tokens(builder: GraphBuilder, state: FoldState, name: str, tokens: str) -> str:
    spec = state.encoder
    ends = {"first_patch": spec.num_prefix_tokens, "end": spec.num_tokens, "axis": 1}
    bounds = [builder.ints(f"pool/{name}", [value]) for name, value in ends.items()]
    return builder.node(f"{name}/Slice", [tokens, *bounds])


def _weighted_mean(builder: GraphBuilder, tokens: str, sizes: str) -> str:
    """Mean of tokens `[B, N, D]`, each as often as it stands for patches."""
    name, axes = "pool.merge", builder.ints("axes/tokens", [1])
    total = builder.node(f"{name}/ReduceSum", [sizes, axes], {"keepdims": 1})
    share = builder.node(f"{name}/Div", [sizes, total])
    share = builder.node(f"{name}/Transpose", [share], {"perm": [0, 2, 1]})
    mean = builder.node("pool/MatMul", [leave_island(builder, name, share), tokens])
    return builder.node("pool/Squeeze", [mean, axes])


def _map(builder: GraphBuilder, state: FoldState, tokens: str, sizes: str | None) -> str:
    """Attention of one constant query over tokens `[B, N, D]`, to `[B, A]`.

    Because the query is a constant, neither keys nor values are computed. A head's logit
    `q . (W_k x + b_k)` is one dot product of x with `W_k^T q` (the bias is the same for every
    token, and softmax ignores it), and the mean of projected tokens is the projected mean token:
    `2 N D H` multiplications in place of `2 N D A`.
    """
    spec, w = state.encoder, state.weights
    heads, head_dim = spec.pool_heads, spec.pool_width // spec.pool_heads
    keys, values = np.split(w["pool.kv.weight"].astype(np.float64), 2)
    query = w["pool.query"].astype(np.float64).reshape(heads, head_dim) * head_dim**-0.5
    scores = np.einsum("hd,hdc->ch", query, keys.reshape(heads, head_dim, spec.width))
    logits = builder.node(
        "pool/qk/MatMul", [tokens, float_constant(builder, "pool.scores", scores)]
    )
    logits = builder.node("pool/qk/Transpose", [logits], {"perm": [0, 2, 1]})
    if sizes is not None:
        logs = builder.node("pool.merge/Log", [sizes])
        logs = builder.node("pool.merge/Transpose", [logs], {"perm": [0, 2, 1]})
        logs = leave_island(builder, "pool.merge", logs)
        logits = builder.node("pool/sizes/Add", [logits, logs])
    weights = builder.node("pool/Softmax", [logits], {"axis": -1})
    mean = builder.node("pool/pv/MatMul", [weights, tokens])
    mean = builder.node("pool/Unsqueeze", [mean, builder.ints("axes/last_but_one", [2])])
    per_head = values.reshape(heads, head_dim, spec.width).transpose(0, 2, 1)
    mixed = builder.node(
        "pool/values/MatMul", [mean, float_constant(builder, "pool.values", per_head)]
    )
    mixed = builder.node(
        "pool/Reshape", [mixed, builder.ints("shape/pooled", [0, spec.pool_width])]
    )
    out_weight, out_bias = w["pool.out_proj.weight"], _output_bias(w)
    pooled = gemm(builder, "pool.out_proj", mixed, out_weight, out_bias)
    normed = norm(builder, state, "pool.norm", pooled)
    if not spec.pool_mlp_width:
        return normed
    hidden = gemm(builder, "pool.mlp.fc1", normed, w["pool.mlp.fc1.weight"], w["pool.mlp.fc1.bias"])
    hidden = activation(builder, state, "pool.mlp.act", hidden)
    update = gemm(builder, "pool.mlp.fc2", hidden, w["pool.mlp.fc2.weight"], w["pool.mlp.fc2.bias"])
    return builder.node("pool.mlp/residual/Add", [pooled, update])


def _output_bias(w: Mapping[str, Array]) -> Array:
    """The value bias passes through the mean unchanged (weights sum to 1) and joins this one."""
    value_bias = np.split(w["pool.kv.bias"].astype(np.float64), 2)[1]
    out = w["pool.out_proj.bias"] + w["pool.out_proj.weight"].astype(np.float64) @ value_bias
    return np.asarray(out, dtype=np.float32)
