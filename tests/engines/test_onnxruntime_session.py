"""All sessions come from one place, with the same options."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import regcache_deploy
import regcache_engines
import regcache_export
from regcache_engines import onnxruntime_session
from regcache_engines.cpu_flags import has_exact_products
from regcache_engines.errors import EngineError
from regcache_engines.onnxruntime_session import (
    EXACT_PRODUCTS,
    NO_TELEMETRY,
    SLEEP_BETWEEN_CALLS,
    installed_distributions,
    open_session,
)
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


def test_a_graph_in_memory_is_let_go_of(model: Path) -> None:
    """ONNX Runtime's Python keeps the bytes for ever: the size of the file, in every session."""
    data = model.read_bytes()
    before = sys.getrefcount(data)
    session = open_session(data, threads=1)
    assert sys.getrefcount(data) == before
    assert session.run(None, {"image": tiny_images(1).numpy()})[0].shape[0] == 1


def test_a_graph_in_memory_that_does_not_load() -> None:
    with pytest.raises(EngineError, match="cannot load the graph in memory"):
        open_session(b"not a model")


def modules_with(pattern: str, *packages: Any) -> list[str]:
    return sorted(
        path.name
        for package in packages
        for path in Path(str(package.__file__)).parent.rglob("*.py")
        if re.search(pattern, path.read_text(encoding="utf-8"))
    )


def test_looking_for_two_distributions_opens_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service without a free file number got OSError from its first batch of arrays."""

    def none_left(*arguments: Any, **keywords: Any) -> Any:
        raise OSError(24, "Too many open files")

    found = installed_distributions()
    assert found
    monkeypatch.setattr("io.open", none_left)
    monkeypatch.setattr("builtins.open", none_left)
    assert installed_distributions() == found


def test_no_other_module_makes_a_session() -> None:
    makes = r"\.(InferenceSession|SessionOptions)\("
    found = modules_with(makes, regcache_engines, regcache_export)
    assert found == ["onnxruntime_session.py"]


def test_no_other_module_loads_the_runtime() -> None:
    """Else it may be loaded before it is told to send nothing."""
    loads = r"\bimport onnxruntime\b|import_module\(\W*onnxruntime"
    every = (regcache_engines, regcache_export, regcache_deploy)
    assert modules_with(loads, *every) == ["onnxruntime_session.py"]


@pytest.mark.parametrize("given", [None, "0"])
def test_the_runtime_sends_nothing_unless_the_caller_lets_it(
    given: str | None, model: Path, tmp_path: Path
) -> None:
    code = f"from regcache_engines import load_engine; load_engine({str(model.parent)!r})"
    code += f"; import os; print(os.environ[{NO_TELEMETRY!r}])"
    known = {name: value for name, value in os.environ.items() if name != NO_TELEMETRY}
    known |= {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    known |= {NO_TELEMETRY: given} if given else {}
    done = subprocess.run(
        [sys.executable, "-c", code], env=known, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == (given or "1")
    if not given:  # its identifier of the user would be here, and so would be what it is to send
        assert not list(tmp_path.rglob("*"))
