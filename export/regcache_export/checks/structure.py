"""Linears and attentions of a graph, found by their shape, not by their names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx
from onnx import TensorProto

from .facts import DEQUANTIZE, GraphFacts


@dataclass(frozen=True)
class Linear:
    """A MatMul with a constant weight.

    Attributes:
        name: of the MatMul.
        kind: `int8` (both operands dequantized), `float16` or `float32`.
    """

    name: str
    kind: str


@dataclass(frozen=True)
class Attention:
    """MatMul, Softmax, MatMul.

    Attributes:
        name: of the first MatMul.
        second: name of the second one.
        quantized_operands: those of q, k, softmax, v that come from a DequantizeLinear.
        float_type: of the float parts: `float16`, `float32`, `unknown`.
        tokens: keys, prefix included, or None if they vary.
        head_size: or None.
        has_bias: a computed value is added to the logits.
    """

    OPERANDS: ClassVar[tuple[str, ...]] = ("q", "k", "softmax", "v")

    name: str
    second: str
    quantized_operands: tuple[str, ...]
    float_type: str
    tokens: int | None
    head_size: int | None
    has_bias: bool = False

    @property
    def is_int8(self) -> bool:
        return len(self.quantized_operands) == len(self.OPERANDS)


def attentions(facts: GraphFacts) -> list[Attention]:
    """Every Softmax between two MatMuls of computed values."""
    found = []
    for softmax in facts.of("Softmax"):
        first = facts.producer.get(softmax.input[0])
        has_bias = False
        while first is not None and first.op_type in ("Mul", "Add", "Div"):
            has_bias |= first.op_type == "Add" and first.input[1] not in facts.constants
            first = facts.producer.get(first.input[0])
        second = _reader(facts, softmax.output[0])
        if first is None or first.op_type != "MatMul" or second is None:
            continue
        operands = zip(Attention.OPERANDS, (*first.input, *second.input), strict=True)
        if any(_is_weight(facts, name) for name in (*first.input, *second.input)):
            continue  # attention pooling with a constant query: two plain products
        keys, queries = facts.shape(first.input[1]), facts.shape(first.input[0])
        found.append(
            Attention(
                name=first.name,
                second=second.name,
                quantized_operands=tuple(
                    role for role, name in operands if facts.dequantized(name) is not None
                ),
                float_type=_float_name(facts, softmax.output[0]),
                tokens=keys[-1] if keys else None,
                head_size=queries[-1] if queries else None,
                has_bias=has_bias,
            )
        )
    return found


def linears(facts: GraphFacts) -> list[Linear]:
    """Every MatMul whose second operand is a constant."""
    found = []
    for node in facts.of("MatMul"):
        if not _is_weight(facts, node.input[1]):
            continue
        weight = facts.producer.get(node.input[1])
        quantized = weight is not None and facts.dequantized(node.input[0]) is not None
        kind = "int8" if quantized else _float_name(facts, node.output[0])
        found.append(Linear(node.name, kind))
    return found


def _is_weight(facts: GraphFacts, name: str) -> bool:
    node = facts.producer.get(name)
    if node is not None and node.op_type == DEQUANTIZE:
        return node.input[0] in facts.constants
    return name in facts.constants


def _reader(facts: GraphFacts, name: str) -> onnx.NodeProto | None:
    """The MatMul that reads a value, through Q and DQ."""
    for node in facts.consumers.get(name, ()):
        if node.op_type == "MatMul":
            return node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            return _reader(facts, node.output[0])
    return None


def _float_name(facts: GraphFacts, name: str) -> str:
    names: dict[int, str] = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16"}
    return names.get(facts.element_type(name), "unknown")
