"""What the rules look at: who computes a value, from what, and of which type."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper, shape_inference

from ..errors import BundleError

Array = npt.NDArray[Any]

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
MOVES = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Slice", "Cast"})
"""Operators that move values and do not compute."""

_BLOCK = re.compile(r"(?:^|\W)blocks\.(\d+)\.")


class GraphIndex:
    """A model, indexed. Types and shapes come from ONNX's own inference.

    Raises:
        BundleError: the types cannot be inferred; the file contradicts itself.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes = list(model.graph.node)
        self.constants = {t.name: t for t in model.graph.initializer}
        self.producer = {name: node for node in self.nodes for name in node.output if name}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)
        try:
            inferred = shape_inference.infer_shapes(_without_data(model), data_prop=True)
        except Exception as error:  # onnx raises several classes of its own
            raise BundleError(f"the types of the graph contradict each other: {error}") from error
        graph = inferred.graph
        self._types = {
            value.name: value.type.tensor_type
            for value in (*graph.value_info, *graph.input, *graph.output)
        }

    @property
    def opset(self) -> int:
        """Version of the standard operators."""
        return next((o.version for o in self.model.opset_import if o.domain in ("", "ai.onnx")), 0)

    def element_type(self, name: str) -> int:
        """TensorProto's number, or 0 where it is not known."""
        if name in self.constants:
            return int(self.constants[name].data_type)
        return int(self._types[name].elem_type) if name in self._types else TensorProto.UNDEFINED

    def shape(self, name: str) -> list[int | None] | None:
        """Sizes, None for one that varies; None where the rank is not known."""
        if name in self.constants:
            return list(self.constants[name].dims)
        kind = self._types.get(name)
        if kind is None or not kind.HasField("shape"):
            return None
        return [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]

    def array(self, name: str) -> Array | None:
        """Value of a constant, or None."""
        if name not in self.constants:
            return None
        value: Array = numpy_helper.to_array(self.constants[name])
        return value

    def source(self, name: str) -> onnx.NodeProto | None:
        """The node that computes a value, through everything that only moves it."""
        node = self.producer.get(name)
        while node is not None and node.op_type in MOVES:
            node = self.producer.get(node.input[0])
        return node

    def dequantized(self, name: str) -> onnx.NodeProto | None:
        """The DequantizeLinear that a value comes from, moves allowed, or None."""
        node = self.source(name)
        return node if node is not None and node.op_type == DEQUANTIZE else None

    def of(self, *operators: str) -> Iterator[onnx.NodeProto]:
        """Nodes of these operators."""
        return (node for node in self.nodes if node.op_type in operators)


def block_of(name: str) -> int | None:
    """`blocks.3.attn.q/MatMul` -> 3; None outside of the blocks."""
    found = _BLOCK.search(name)
    return int(found[1]) if found else None


def _without_data(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with large constants declared instead of held: inference wants no copies."""
    light = onnx.ModelProto()
    light.CopyFrom(model)
    for tensor in light.graph.initializer:
        if tensor.ByteSize() > 1024:
            declared = onnx.helper.make_tensor_value_info(
                tensor.name, tensor.data_type, list(tensor.dims)
            )
            light.graph.input.append(declared)
            tensor.Clear()
    kept = [tensor for tensor in light.graph.initializer if tensor.name]
    del light.graph.initializer[:]
    light.graph.initializer.extend(kept)
    return light
