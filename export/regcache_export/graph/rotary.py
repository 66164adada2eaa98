"""Rotary position embedding: queries and keys turned by the angles of their patch.

Two channels i and i + d/2 of a head are one plane. Special tokens have angle 0 in the same table,
so that nothing is split off and joined again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..passes.base import FoldState
from .builder import GraphBuilder
from .float_layers import float_constant


@dataclass(frozen=True)
class Angles:
    """Cosines and sines of the tokens that are left: values `[(B,) N, 1, d/2]`."""

    cos: str
    sin: str


def all_angles(builder: GraphBuilder, state: FoldState) -> Angles:
    """Those of every token."""
    return _halves_of(builder, state, "rotary", _table(builder, state))


def angles_of_survivors(
    builder: GraphBuilder, state: FoldState, name: str, positions: str
) -> Angles:
    """Those of the special tokens, then of the patches at `positions`, value `[B, n]`.

    `name` is the prefix of the nodes, e.g. `blocks.6.delete/rotary`.
    """
    special, rows = state.encoder.num_prefix_tokens, positions
    if special:
        rows = builder.node(f"{name}/Add", [rows, builder.ints("rotary.first_patch", [special])])
        first = builder.constant("rotary.special", np.arange(special, dtype=np.int64)[None])
        first = builder.node(f"{name}/Expand", [first, builder.batch_shape(2)])
        rows = builder.node(f"{name}/Concat", [first, rows], {"axis": 1})
    kept = builder.node(f"{name}/Gather", [_table(builder, state), rows], {"axis": 0})
    return _halves_of(builder, state, name, kept)


def _table(builder: GraphBuilder, state: FoldState) -> str:
    """`[N, 1, d]`, the same for all heads."""
    return float_constant(builder, "rotary", state.weights["rotary"][:, None])


def _halves_of(builder: GraphBuilder, state: FoldState, name: str, table: str) -> Angles:
    parts = [f"{name}/cos", f"{name}/sin"]
    builder.node(f"{name}/Split", [table, _halves(builder, state)], {"axis": -1}, parts)
    return Angles(*parts)


def rotate(builder: GraphBuilder, state: FoldState, name: str, x: str, angles: Angles) -> str:
    """Turn queries or keys `[B, N, D]`, heads side by side."""
    spec = state.encoder
    heads = builder.ints("shape/heads", [0, 0, spec.heads, spec.head_dim])
    split = builder.node(f"{name}/heads/Reshape", [x, heads])
    left, right = f"{name}/left", f"{name}/right"
    builder.node(f"{name}/Split", [split, _halves(builder, state)], {"axis": -1}, [left, right])

    def times(half: str, part: str, angle: str) -> str:
        return builder.node(f"{name}/{part}/Mul", [half, angle])

    first = builder.node(
        f"{name}/Sub", [times(left, "left_cos", angles.cos), times(right, "right_sin", angles.sin)]
    )
    second = builder.node(
        f"{name}/Add", [times(right, "right_cos", angles.cos), times(left, "left_sin", angles.sin)]
    )
    turned = builder.node(f"{name}/Concat", [first, second], {"axis": -1})
    merged = builder.ints("shape/merged", [0, 0, spec.width])
    return builder.node(f"{name}/Reshape", [turned, merged])


def _halves(builder: GraphBuilder, state: FoldState) -> str:
    return builder.ints("shape/rotary_halves", [state.encoder.head_dim // 2] * 2)
