"""A thin layer over `onnx.helper`: names decided by the caller, order decided by the calls.

Nothing here generates a name, reads a clock or iterates over a set, so the same calls give the
same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from ..targets import DEFAULT_TARGET, Target, find_target

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]


class GraphBuilder:
    """Collects nodes and initializers of one graph.

    A value has the name of the node that computes it (`blocks.6.attn.qkv/MatMul`); node names and
    value names are separate namespaces in ONNX, so the two never clash.
    """

    def __init__(self, input_name: str, target: Target | None = None) -> None:
        """`target` decides in which operators linears and attention are written."""
        self.target = target or find_target(DEFAULT_TARGET)
        self._input = input_name
        self._nodes: list[onnx.NodeProto] = []
        self._names: set[str] = set()
        self._constants: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: Array) -> str:
        """Add an initializer; adding the same one again is allowed, e.g. for a shared shape.

        Raises:
            ValueError: `name` already holds another value.
        """
        tensor = numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)
        known = self._constants.setdefault(name, tensor)
        if known is not tensor and known != tensor:
            raise ValueError(f"two different constants want the name {name}")
        return name

    def ints(self, name: str, values: Sequence[int]) -> str:
        """An int64 `[len(values)]` initializer: shapes, axes, split sizes."""
        return self.constant(name, np.asarray(values, dtype=np.int64))

    def node(
        self,
        name: str,
        inputs: Sequence[str],
        attributes: Mapping[str, Any] | None = None,
        outputs: Sequence[str] = (),
        domain: str = "",
    ) -> str:
        """Add a node; its operator is the last part of its name.

        Args:
            name: `owner/Operator`, or `owner/role/Operator`.
            inputs: names of values; an empty string leaves an optional input out.
            attributes: ONNX attributes of the operator.
            outputs: names of the outputs, if there is more than the one named like the node.
            domain: of the operator; empty for the standard ones.

        Returns:
            The name of the (first) output.

        Raises:
            ValueError: the name is taken.
        """
        if name in self._names:
            raise ValueError(f"two nodes want the name {name}")
        self._names.add(name)
        operator = name.rsplit("/", 1)[-1]
        results = list(outputs) or [name]
        self._nodes.append(
            helper.make_node(
                operator,
                list(inputs),
                results,
                name=name,
                domain=domain or None,
                **(attributes or {}),
            )
        )
        return results[0]

    def batch_shape(self, rank: int) -> str:
        """A value `[batch, 1, ...]` of `rank` entries, to expand constants with.

        Its nodes are added where it is first asked for.
        """
        name = f"batch/rank{rank}/Concat"
        if name not in self._names:
            if "batch/Shape" not in self._names:
                self.node("batch/Shape", [self._input], {"start": 0, "end": 1})
            ones = self.ints(f"shape/ones{rank - 1}", [1] * (rank - 1))
            self.node(name, ["batch/Shape", ones], {"axis": 0})
        return name

    def graph(
        self,
        name: str,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
    ) -> onnx.GraphProto:
        """The finished graph, nodes in the order in which they were added."""
        return helper.make_graph(
            self._nodes, name, inputs, outputs, initializer=list(self._constants.values())
        )
