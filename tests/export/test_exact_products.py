"""A graph as written is exact on a CPU without VNNI, too, or is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from regcache_engines import load_engine, onnxruntime_engine
from regcache_engines.cpu_flags import has_exact_products
from regcache_engines.errors import EngineError
from regcache_engines.onnxruntime_session import open_session
from regcache_export import trace
from regcache_export.bundle import write_bundle
from regcache_export.exact_products import exact_products
from regcache_export.graph import build_model
from regcache_export.targets import GraphOptions
from regcache_export.trace import Tracer
from tests.tiny_plans import tiny_images, tiny_plan

pytest.importorskip("onnxruntime")
TUNED = GraphOptions(target="onnxruntime")


def test_the_unsigned_products_are_the_same_products(monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_exact_products():
        pytest.skip("without VNNI the signed ones are the wrong ones")
    plan = tiny_plan()
    model, images = build_model(plan, options=TUNED), tiny_images(3).numpy()
    traces = []
    for saturates in (False, True):
        monkeypatch.setattr(trace, "may_saturate", lambda answer=saturates: answer)
        traces.append(Tracer(model, plan.encoder).run(images))
    np.testing.assert_array_equal(traces[0].features, traces[1].features)
    for name, values in traces[0].values.items():
        np.testing.assert_array_equal(values, traces[1].values[name], err_msg=name)
    changed = exact_products(model)
    assert changed == sum(node.op_type == "MatMulIntegerToFloat" for node in model.graph.node) > 0
    assert exact_products(model) == 0


@pytest.mark.parametrize("columns", [None, "scalar", "each"])
def test_weight_zero_points(columns: str | None) -> None:
    rng = np.random.default_rng(0)
    # codes below 64: exact on every CPU, so that the signed product is right as well
    x = rng.integers(0, 64, (4, 16), dtype=np.uint8)
    weight = rng.integers(-64, 64, (16, 6), dtype=np.int8)
    points = {"scalar": np.int8(-3), "each": rng.integers(-9, 9, 6, dtype=np.int8)}
    constants = {"w": weight, "a": np.float32(0.5), "b": np.float32(0.25), "z": np.uint8(7)}
    names = ["x", "w", "a", "b", "z"]
    if columns is not None:
        constants["p"] = points[columns]
        names.append("p")
    node = helper.make_node("MatMulIntegerToFloat", names, ["y"], domain="com.microsoft")
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 6])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    expected = (x.astype(int) - 7) @ (weight.astype(int) - constants.get("p", 0)) * 0.125
    for changed in (1, 0):
        assert exact_products(model) == changed
        session = open_session(model.SerializeToString(), threads=1, optimize=False)
        np.testing.assert_array_equal(session.run(None, {"x": x})[0], expected)


def test_an_engine_without_optimizations_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = write_bundle(tiny_plan(), tmp_path / "tuned.regcache", options=TUNED)
    portable = write_bundle(tiny_plan(), tmp_path / "portable.regcache")
    load_engine(tuned, optimize=False).close()
    monkeypatch.setattr(onnxruntime_engine, "may_saturate", lambda: True)
    with pytest.raises(EngineError, match="VNNI"):
        load_engine(tuned, optimize=False)
    load_engine(tuned).close()
    load_engine(portable, optimize=False).close()
