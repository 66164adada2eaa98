"""Edit a written graph by the names of its nodes, which are ours and therefore known."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy.typing as npt

from ..onnx_proto import from_array, to_array

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto, TensorProto

Array = npt.NDArray[Any]

Rewrite: TypeAlias = "Callable[[NodeProto], Iterable[NodeProto]]"


class GraphEditor:
    """Changes one graph in place; the order of the nodes stays topological.

    Attributes:
        constants: initializers by name.
    """

    def __init__(self, graph: GraphProto) -> None:
        self._graph = graph
        self.constants: dict[str, TensorProto] = {t.name: t for t in graph.initializer}

    @property
    def nodes(self) -> list[NodeProto]:
        return list(self._graph.node)

    def value(self, name: str) -> Array:
        """The array of an initializer."""
        array: Array = to_array(self.constants[name])
        return array

    def constant(self, name: str, value: Array) -> str:
        """Add an initializer; adding the same one again is allowed.

        Raises:
            ValueError: `name` already holds another value.
        """
        tensor = from_array(value, name)
        known = self.constants.setdefault(name, tensor)
        if known is tensor:
            self._graph.initializer.append(tensor)
        elif known != tensor:
            raise ValueError(f"two different constants want the name {name}")
        return name

    def rewrite(self, rule: Rewrite) -> None:
        """Replace every node by what `rule` returns for it: itself, others, or nothing."""
        nodes = [new for node in self.nodes for new in rule(node)]
        del self._graph.node[:]
        self._graph.node.extend(nodes)

    def drop_unused_constants(self) -> None:
        """Remove initializers that no node reads any more."""
        used = {name for node in self._graph.node for name in node.input}
        kept = [tensor for tensor in self._graph.initializer if tensor.name in used]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)
        self.constants = {tensor.name: tensor for tensor in self._graph.initializer}


def new_node(name: str, inputs: list[str], output: str = "", **attributes: Any) -> NodeProto:
    """A node named `owner/Operator`; its output has the same name unless another is given."""
    from onnx import helper

    operator = name.rsplit("/", 1)[-1]
    return helper.make_node(operator, inputs, [output or name], name=name, **attributes)
