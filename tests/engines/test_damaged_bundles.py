"""Python refuses what the C++ library refuses: one table of damages (`tests/cpp/damages.py`)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from regcache_engines import Bundle, load_engine
from regcache_engines.errors import BundleError, EngineError
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
