"""Pooling and projection in numpy float64, beside `reference`."""

from __future__ import annotations

import numpy as np

from .reference import Array, Float64, Reference
from .reference_activation import activation
from .survivors import Left


def pooled_features(reference: Reference, tokens: Array, left: Left | None = None) -> Float64:
    """Tokens `[B, N, D]` behind the last block -> features `[B, E]`.

    `left` says what the patches among them stand for; None where each is one.
    """
    spec, x = reference.spec, tokens.astype(np.float64)
    special = spec.num_prefix_tokens if spec.pool_include_prefix else 0
    sizes = left.sizes if left is not None else None
    known = None if sizes is None else np.pad(sizes, ((0, 0), (special, 0)), constant_values=1)
    if spec.pool != "cls" and not spec.pool_include_prefix:
        x = x[:, spec.num_prefix_tokens :]
    if spec.final_norm == "before_pool":
        x = reference.norm("norm", x)
    if spec.pool == "cls":
        pooled = x[:, 0]
    elif spec.pool == "map":
        pooled = _map(reference, x, known)
    elif known is not None:
        pooled = np.einsum("bn,bnd->bd", known, x) / known.sum(axis=1, keepdims=True)
    else:
        pooled = x.mean(axis=1)
    if spec.final_norm == "after_pool":
        pooled = reference.norm("norm", pooled)
    return _gemm(reference, "proj", pooled) if spec.projection else pooled


def _map(reference: Reference, x: Float64, sizes: Array | None) -> Float64:
    """One constant query: `pool.scores [D, H]` and `pool.values [H, D, d]` are folded weights."""
    logits = (x @ reference.constant("pool.scores")).transpose(0, 2, 1)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    if sizes is not None:
        weights = weights * sizes[:, None]
    mean = (weights / weights.sum(axis=-1, keepdims=True)) @ x
    mixed = mean[:, :, None] @ reference.constant("pool.values")
    pooled = _gemm(reference, "pool.out_proj", mixed.reshape(len(x), -1))
    normed = reference.norm("pool.norm", pooled)
    if not reference.spec.pool_mlp_width:
        return normed
    hidden = _gemm(reference, "pool.mlp.fc1", normed)
    hidden = activation(reference.spec.activation, hidden, reference.gate)
    return pooled + _gemm(reference, "pool.mlp.fc2", hidden)


def _gemm(reference: Reference, name: str, x: Float64) -> Float64:
    y: Float64 = x @ reference.constant(f"{name}.weight")
    bias = f"{name}.bias"
    return y + reference.constant(bias) if bias in reference.constants else y
