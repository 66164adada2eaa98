"""What travels from block to block: the tokens, and what is known of each."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import TensorProto

from .builder import GraphBuilder
from .rotary import Angles

ISLAND = "merge/"
"""Part of the name of every node that stays in float32, whatever the body is; its constants begin
with `merge.`. A cosine in float16 has so few values that most pairs would tie."""

ENTER, LEAVE = "enter/Cast", "leave/Cast"


@dataclass(frozen=True)
class Tokens:
    """Tokens of one place in the graph.

    Attributes:
        value: `[B, S + patches, D]`, leading tokens in front.
        patches: how many patch tokens are left.
        angles: of the tokens, where the encoder is rotary and the next block asks.
        places: which patches they are, value `[B, patches]`; None while all are there. Kept for
            rotary encoders alone.
        sizes: how many patches each token stands for, value `[B, S + patches, 1]` in float32; None
            while it is one.
    """

    value: str
    patches: int
    angles: Angles | None = None
    places: str | None = None
    sizes: str | None = None


def enter_island(builder: GraphBuilder, name: str, value: str) -> str:
    """A value of the body in float32. `name` ends in `merge`, or in `merge/ROLE`."""
    if builder.target.form != "tensorrt":
        return value
    return builder.node(f"{name}/{ENTER}", [value], {"to": TensorProto.FLOAT})


def leave_island(builder: GraphBuilder, name: str, value: str) -> str:
    """A float32 value in the type of the body."""
    if builder.target.form != "tensorrt":
        return value
    return builder.node(f"{name}/{LEAVE}", [value], {"to": TensorProto.FLOAT})


def in_island(node: onnx.NodeProto) -> bool:
    """Whether a node gives out float32 in any body."""
    return ISLAND in node.name and not node.name.endswith(LEAVE)
