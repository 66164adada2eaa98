"""All sessions come from one place, with the same options."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import regcache_engines
import regcache_export
from regcache_engines import onnxruntime_session
from regcache_engines.cpu_flags import has_exact_products
from regcache_engines.errors import EngineError
from regcache_engines.onnxruntime_session import EXACT_PRODUCTS, SLEEP_BETWEEN_CALLS, open_session
from regcache_export.bundle import write_bundle
from regcache_export.inspect import integer_gemms
from regcache_export.targets import GraphOptions
from tests.tiny_plans import tiny_images, tiny_plan

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module", params=["onnx", "onnxruntime"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("session") / "tiny.regcache"
    return write_bundle(tiny_plan(), folder, options=GraphOptions(request.param)) / "model.onnx"


def precision(session: Any) -> str:
    options = session.get_session_options()
    assert options.get_session_config_entry(SLEEP_BETWEEN_CALLS) == "1"
    try:
        return str(options.get_session_config_entry(EXACT_PRODUCTS))
    except RuntimeError:  # not set
        return ""


@pytest.mark.parametrize(("saturates", "expected"), [(True, "1"), (False, "")])
def test_exact_products_are_asked_for_where_they_are_not_given(
    saturates: bool, expected: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime_session, "may_saturate", lambda: saturates)
    for optimize in (True, False):
        assert precision(open_session(model, threads=1, optimize=optimize)) == expected
    assert precision(open_session(model.read_bytes(), threads=1)) == expected


def test_exact_products_are_the_same_products(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_exact_products():
        pytest.skip("without VNNI the two differ: that is what the option is for")
    features, products = [], []
    for saturates in (False, True):
        monkeypatch.setattr(onnxruntime_session, "may_saturate", lambda answer=saturates: answer)
        session = open_session(model, threads=1)
        features.append(session.run(None, {"image": tiny_images(3).numpy()})[0])
        products.append(integer_gemms(model))
    np.testing.assert_array_equal(*features)
    assert products[0] == products[1] > 0


def test_options_are_those_asked_for(model: Path, tmp_path: Path) -> None:
    options = open_session(model, threads=3, optimize=False).get_session_options()
    assert options.intra_op_num_threads == 3
    levels = onnxruntime.GraphOptimizationLevel
    assert options.graph_optimization_level == levels.ORT_DISABLE_ALL
    open_session(model, optimized_model=tmp_path / "optimized.onnx")
    assert (tmp_path / "optimized.onnx").stat().st_size > 0


def test_a_graph_in_memory_that_does_not_load() -> None:
    with pytest.raises(EngineError, match="cannot load the graph in memory"):
        open_session(b"not a model")


def test_no_other_module_makes_a_session() -> None:
    makes = re.compile(r"\.(InferenceSession|SessionOptions)\(")
    found = [
        path.name
        for package in (regcache_engines, regcache_export)
        for path in Path(str(package.__file__)).parent.rglob("*.py")
        if makes.search(path.read_text(encoding="utf-8"))
    ]
    assert found == ["onnxruntime_session.py"]
