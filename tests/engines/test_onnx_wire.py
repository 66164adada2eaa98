"""External data is found wherever ONNX allows a tensor, and only there."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from regcache_engines.onnx_wire import has_external_data

PLACES = (
    "initializer",
    "attribute",
    "list",
    "subgraph",
    "sparse",
    "function",
    "default",
    "training",
)


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
    elif place == "training":
        model.training_info.add().initialization.initializer.append(held)
    elif place == "default":
        function = model.functions.add(name="f", domain="d")
        function.attribute_proto.append(helper.make_attribute("value", held))
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


@pytest.mark.parametrize(
    "odd",
    [
        b"\x0b\x0c",  # a group and its end
        b"\x08\x81\x00",  # a number longer than need be
        b"\x8a\x80\x80\x80\x10\x00",  # a tag of 33 bits: another reader takes its low half
        b"\x02\x00",  # field 0
        b"\x0a\x7f",  # a length beyond the end
        b"\x09\x00",  # half of a number
    ],
)
def test_what_readers_take_in_several_ways_is_not_trusted(odd: bytes) -> None:
    whole = model_with("initializer", False).SerializeToString()
    assert not has_external_data(whole)
    assert has_external_data(whole + odd)
    if odd[0] != 0x0A:  # whose length is not beyond the end there
        assert has_external_data(odd + whole)
