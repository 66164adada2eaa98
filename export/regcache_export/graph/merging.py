"""Merging of similar patch tokens between attention and MLP (`regcache_export.merge`).

Static shapes and standard operators: one TopK over all rows and a Split in place of sorts, GatherND
with a batch dimension for the rows, a product with a one-hot matrix in place of a scatter, whose
reduction no runtime but ONNX Runtime has. Everything is float32, and nothing is quantized.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..passes.base import FoldState
from .builder import GraphBuilder
from .float_layers import float_constant
from .merge_island import Island, Moves
from .rotary import angles_of_survivors
from .tokens import Tokens, enter_island, leave_island


def merge_tokens(
    builder: GraphBuilder, state: FoldState, index: int, tokens: Tokens, keys: str
) -> Tokens:
    """Add the merge of block `index`; the same tokens where it merges nothing.

    Args:
        builder: graph under construction.
        state: what to bake.
        index: block.
        tokens: behind the attention's update and a deletion.
        keys: that attention used, of the same tokens, value `[B, N, D]`, heads side by side.
    """
    merge = state.merge
    if merge is None or not merge.counts[index]:
        return tokens
    name, count = f"blocks.{index}.merge", merge.counts[index]
    island = Island(builder, name, state.encoder.num_prefix_tokens, tokens.patches, count)
    x = enter_island(builder, name, tokens.value)
    metric = x
    if merge.metric == "keys":
        metric = _mean_of_heads(builder, state, name, enter_island(builder, f"{name}/keys", keys))
    moves = island.moves(metric)
    weights = island.weights(moves, tokens.sizes)
    value = island.merged(x, moves, weights)
    left = replace(
        tokens,
        value=leave_island(builder, name, value),
        patches=tokens.patches - count,
        sizes=weights.total if _sizes_matter(state, index) else None,
    )
    return _with_places(builder, state, index, left, island, tokens.places, moves)


def log_sizes(
    builder: GraphBuilder, state: FoldState, index: int, tokens: Tokens, queries: int
) -> str | None:
    """What joins the logits of block `index`: value `[B, 1, 1 or queries, T]`, or None.

    The cached keys in front are one token each, and their logarithm is 0.
    """
    if state.merge is None or not state.merge.proportional or tokens.sizes is None:
        return None
    name = f"blocks.{index}.attn.merge"
    logs = builder.node(f"{name}/Log", [tokens.sizes])
    logs = builder.node(f"{name}/Transpose", [logs], {"perm": [0, 2, 1]})
    logs = builder.node(f"{name}/Unsqueeze", [logs, builder.ints("axes/heads", [1])])
    if state.has_prefix(index):
        assert state.regcache is not None
        cached = np.zeros((1, 1, 1, state.regcache.prefix_count))
        zeros = float_constant(builder, "merge.cached", cached)
        zeros = builder.node(f"{name}/cached/Expand", [zeros, builder.batch_shape(4)])
        logs = builder.node(f"{name}/Concat", [zeros, logs], {"axis": 3})
    if builder.target.attention == "multi_head":
        # its kernel takes no row for all queries
        shape = builder.ints(f"shape/queries{queries}", [1, 1, queries, 1])
        logs = builder.node(f"{name}/Expand", [logs, shape])
    return leave_island(builder, name, logs)


def _sizes_matter(state: FoldState, index: int) -> bool:
    """Whether somebody behind block `index` asks what a token stands for."""
    assert state.merge is not None
    later = any(state.merge.counts[index + 1 :])
    attention = state.merge.proportional and index + 1 < state.encoder.depth
    return later or attention or state.encoder.pool != "cls"


def _mean_of_heads(builder: GraphBuilder, state: FoldState, name: str, keys: str) -> str:
    spec = state.encoder
    heads = builder.ints("shape/heads", [0, 0, spec.heads, spec.head_dim])
    split = builder.node(f"{name}/keys/Reshape", [keys, heads])
    axes = builder.ints("axes/head", [2])
    return builder.node(f"{name}/keys/ReduceMean", [split, axes], {"keepdims": 0})


def _with_places(
    builder: GraphBuilder,
    state: FoldState,
    index: int,
    tokens: Tokens,
    island: Island,
    before: str | None,
    moves: Moves,
) -> Tokens:
    """A rotary encoder's tokens keep their angles; a merged one has those of its destination."""
    if not state.encoder.rotary or index + 1 == state.encoder.depth:
        return tokens
    name = f"blocks.{index}.merged"
    places = island.places(name, before, moves)
    angles = angles_of_survivors(builder, state, f"{name}/rotary", places)
    return replace(tokens, places=places, angles=angles)
