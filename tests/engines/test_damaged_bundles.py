"""Python refuses what the C++ library refuses: one table of damages (`tests/cpp/damages.py`)."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

from regcache_engines import Bundle, load_engine
from regcache_engines.errors import BundleError, EngineError
from regcache_engines.monitor import _rates
from regcache_engines.preprocess_config import preprocess_problem
from regcache_engines.text_config import TextConfig
from regcache_export.bundle import write_bundle
from tests.cpp.damages import DAMAGES
from tests.tiny_plans import tiny_plan

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tiny_plan(), tmp_path_factory.mktemp("whole") / "tiny.regcache")


def test_the_whole_one_loads(whole: Path) -> None:
    with load_engine(whole, threads=1) as engine:
        assert engine.output_dim == Bundle.open(whole).text_features.shape[1]


@pytest.mark.parametrize("what", DAMAGES)
def test_refused_in_python(what: str, whole: Path, tmp_path: Path) -> None:
    status, damage = DAMAGES[what]
    damaged = Path(shutil.copytree(whole, tmp_path / "damaged.regcache"))
    damage(damaged)
    error = BundleError if status.startswith("BUNDLE") else EngineError
    with pytest.raises(error) as caught:
        load_engine(Bundle.open(damaged), threads=1)
    assert len(str(caught.value).split()) > 3, "no message"


@pytest.mark.parametrize("digits", ["1" * 401, "-" + "1" * 401, "1e999", "NaN"])
def test_a_number_beyond_all_floats_is_no_number(digits: str, tmp_path: Path) -> None:
    """JSON has integers of any length; a float of one is an OverflowError."""
    value = json.loads(digits)
    for field in ("fill_color", "crop_pct", "size"):
        assert preprocess_problem({field: value})
    for field in ("mean", "std"):
        assert preprocess_problem({field: [value] * 3})
    with pytest.raises(BundleError):
        TextConfig.parse(json.dumps({"logit_scale": value}).encode(), "text.json")
    assert all(math.isnan(rate) for rate in _rates([value, value]))
