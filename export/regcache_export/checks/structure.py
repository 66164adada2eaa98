"""Linears and attentions of a graph, found by their shape, not by their names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx
from onnx import TensorProto

from .graph_index import DEQUANTIZE, GraphIndex


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


def attentions(graph: GraphIndex) -> list[Attention]:
    """Every Softmax between two MatMuls of computed values."""
    found = []
    for softmax in graph.of("Softmax"):
        first = graph.producer.get(softmax.input[0])
        has_bias = False
        while first is not None and first.op_type in ("Mul", "Add", "Div"):
            has_bias |= first.op_type == "Add" and first.input[1] not in graph.constants
            first = graph.producer.get(first.input[0])
        second = _reader(graph, softmax.output[0])
        if first is None or first.op_type != "MatMul" or second is None:
            continue
        operands = zip(Attention.OPERANDS, (*first.input, *second.input), strict=True)
        if any(_is_weight(graph, name) for name in (*first.input, *second.input)):
            continue  # attention pooling with a constant query: two plain products
        keys, queries = graph.shape(first.input[1]), graph.shape(first.input[0])
        found.append(
            Attention(
                name=first.name,
                second=second.name,
                quantized_operands=tuple(
                    role for role, name in operands if graph.dequantized(name) is not None
                ),
                float_type=_float_name(graph, softmax.output[0]),
                tokens=keys[-1] if keys else None,
                head_size=queries[-1] if queries else None,
                has_bias=has_bias,
            )
        )
    return found


def linears(graph: GraphIndex) -> list[Linear]:
    """Every MatMul whose second operand is a constant."""
    found = []
    for node in graph.of("MatMul"):
        if not _is_weight(graph, node.input[1]):
            continue
        few = graph.producer.get(node.input[0])
        if few is not None and few.op_type == "Gather" and few.input[1] in graph.constants:
            continue  # a few channels of a linear's input, beside its integer product
        weight = graph.producer.get(node.input[1])
        quantized = weight is not None and graph.dequantized(node.input[0]) is not None
        kind = "int8" if quantized else _float_name(graph, node.output[0])
        found.append(Linear(node.name, kind))
    return found


def _is_weight(graph: GraphIndex, name: str) -> bool:
    node = graph.producer.get(name)
    if node is not None and node.op_type == DEQUANTIZE:
        return node.input[0] in graph.constants
    return name in graph.constants


def _reader(graph: GraphIndex, name: str) -> onnx.NodeProto | None:
    """The MatMul that reads a value, through Q and DQ."""
    for node in graph.consumers.get(name, ()):
        if node.op_type == "MatMul":
            return node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            return _reader(graph, node.output[0])
    return None


def _float_name(graph: GraphIndex, name: str) -> str:
    names: dict[int, str] = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16"}
    return names.get(graph.element_type(name), "unknown")
