"""External data is found wherever ONNX allows a tensor, and only there."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from regcache_engines.onnx_wire import has_external_data

PLACES = ("initializer", "attribute", "list", "subgraph", "sparse", "function")


def tensor(external: bool) -> TensorProto:
    made: TensorProto = numpy_helper.from_array(np.arange(300, dtype=np.float32), "w")
    if external:
        made.ClearField("raw_data")
        made.data_location = TensorProto.EXTERNAL
        made.external_data.add(key="location", value="weights")
    return made


def model_with(place: str, external: bool) -> onnx.ModelProto:
    held = tensor(external)
    graph = helper.make_graph([], "g", [], [])
    node = helper.make_node("Constant", [], ["y"], name="before", note="x" * 300)
    model = helper.make_model(graph)
    if place == "initializer":
        model.graph.initializer.append(held)
    elif place == "attribute":
        node.attribute.append(helper.make_attribute("value", held))
    elif place == "list":
        node.attribute.append(helper.make_attribute("values", [held]))
    elif place == "subgraph":
        inner = helper.make_graph([], "inner", [], [], [held])
        node.attribute.append(helper.make_attribute("then_branch", inner))
    elif place == "sparse":
        model.graph.sparse_initializer.add().values.CopyFrom(held)
    else:
        function = model.functions.add(name="f", domain="d")
        function.node.add().attribute.append(helper.make_attribute("value", held))
    model.graph.node.append(node)
    return model


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("external", [True, False])
def test_external_data_is_found(place: str, external: bool) -> None:
    assert has_external_data(model_with(place, external).SerializeToString()) is external


def test_bytes_that_are_no_model_end() -> None:
    whole = model_with("initializer", True).SerializeToString()
    for end in range(len(whole)):
        has_external_data(whole[:end])
    rng = np.random.default_rng(0)
    for size in (1, 7, 64, 4096):
        for _ in range(50):
            has_external_data(rng.bytes(size))
