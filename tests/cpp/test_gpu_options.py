"""What the C++ library tells the providers of a GPU, against a fake that runs on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from regcache_engines import Bundle
from regcache_export.bundle import write_bundle
from regcache_export.targets import GraphOptions
from tests.cpp.programs import run
from tests.tiny_plans import tiny_plan


@pytest.fixture
def fake(release: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    real = release / "onnxruntime/libonnxruntime.so.1"
    monkeypatch.setenv("REGCACHE_REAL_ONNXRUNTIME", str(real))
    return str(release / "fake_gpu.so")


def test_cached_engines_are_named_by_the_model(
    release: Path, fake: str, images: list[Path], tmp_path: Path
) -> None:
    """ONNX Runtime's own name is of file and graph: it would take another bundle's engine."""
    prefixes = set()
    for index, changes in enumerate(({}, {"projection": False})):
        plan = tiny_plan(**changes)
        bundle = write_bundle(plan, tmp_path / f"{index}.regcache")
        words = ("--provider", "tensorrt", bundle, images[0])
        done = run(release / "regcache_classify", *words, runtime=fake)
        assert done.returncode == 0, done.stderr
        assert "tensorrt trt_int8_enable=1" in done.stderr
        assert "cache" not in done.stderr
        done = run(release / "regcache_classify", "--engine-cache", tmp_path, *words, runtime=fake)
        digest = Bundle.open(bundle).manifest["files"]["model.onnx"]["sha256"]
        assert f"tensorrt trt_engine_cache_path={tmp_path}\n" in done.stderr
        assert f"tensorrt trt_engine_cache_prefix={digest[:16]}\n" in done.stderr
        prefixes.add(digest[:16])
    assert len(prefixes) == 2


@pytest.mark.parametrize(("provider", "better"), [("cuda", "onnx"), ("tensorrt", "tensorrt")])
def test_a_graph_for_the_cpu_is_refused(
    provider: str, better: str, release: Path, fake: str, images: list[Path], tmp_path: Path
) -> None:
    options = GraphOptions(target="onnxruntime")
    for quantized in (True, False):
        bundle = write_bundle(
            tiny_plan(quantized), tmp_path / f"{quantized}.regcache", options=options
        )
        words = ("--provider", provider, bundle, images[0])
        done = run(release / "regcache_classify", *words, runtime=fake)
        assert done.returncode == (7 if quantized else 0), done.stderr
        assert (f"export it with --target {better}" in done.stderr) is quantized
