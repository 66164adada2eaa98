"""Weights that processes share: the same features to rounding, and one file for all."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import regcache_engines
from regcache_engines import mapped_model, onnxruntime_session
from regcache_engines.errors import ConfigError, EngineError
from regcache_engines.load import load_engine
from regcache_engines.onnxruntime_engine import OnnxRuntimeEngine
from regcache_export.bundle import write_bundle
from tests.engines.test_onnx_wire import model_with
from tests.tiny_plans import tiny_images, tiny_plan

BIG = Path("/proc/self/smaps")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tiny_plan(), tmp_path_factory.mktemp("mapped") / "tiny.regcache")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_features_from_one_file(threads: int, bundle: Path, tmp_path: Path) -> None:
    folder, images = tmp_path / "new" / "mapped", tiny_images(6).numpy()
    with load_engine(bundle, threads=threads) as engine:
        wanted = engine.infer(images)
    for _ in range(2):
        with load_engine(bundle, threads=threads, pieces=True, mmap_folder=folder) as engine:
            assert np.allclose(engine.infer(images), wanted, atol=1e-5)
            if BIG.exists():
                assert names(folder)[0] in BIG.read_text(encoding="utf-8")
    (only,) = folder.iterdir()
    with regcache_engines.open(bundle, threads=threads, mmap_folder=str(folder)) as clip:
        pixels = np.zeros((40, 40, 3), np.uint8)
        with regcache_engines.open(bundle, threads=threads) as other:
            assert np.allclose(clip.embed_images(pixels), other.embed_images(pixels), atol=1e-5)
    assert [only] == list(folder.iterdir())


def test_another_runtime_model_or_cpu_has_a_file_of_its_own(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(path: Path) -> int:
        load_engine(path, threads=1, mmap_folder=tmp_path / "m").close()
        return len(names(tmp_path / "m"))

    assert load(bundle) == load(bundle / "model.onnx") == 1
    other = write_bundle(tiny_plan(seed=1), tmp_path / "other.regcache")
    assert load(other) == 2
    monkeypatch.setattr(mapped_model, "may_saturate", lambda: True)
    assert load(bundle) == 3
    runtime = onnxruntime_session.import_onnxruntime()
    monkeypatch.setattr(runtime, "__version__", "9.9")
    assert load(bundle) == 4


def test_whoever_starts_at_once_shares_one_file(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    makes, open_session = list[Any](), onnxruntime_session.open_session
    both_looked = threading.Barrier(2, timeout=20)

    def made(*args: Any, **options: Any) -> Any:
        makes.append(options["optimized_model"])
        return open_session(*args, **options)

    def looked(path: Path, pattern: str) -> list[Path]:
        found = [*glob(path, pattern)]
        if len(looks) < 2:
            looks.append(pattern)
            both_looked.wait()
        return found

    looks, glob = list[str](), Path.glob
    monkeypatch.setattr(mapped_model, "open_session", made)
    monkeypatch.setattr(Path, "glob", looked)
    load = partial(load_engine, bundle, threads=1, mmap_folder=tmp_path / "m")
    with ThreadPoolExecutor(2) as pool:
        for engine in [pool.submit(load), pool.submit(load)]:
            engine.result().close()
    assert len(makes) == len(names(tmp_path / "m")) == 1


def test_the_file_is_laid_out_for_no_cpu_of_its_own(bundle: Path, tmp_path: Path) -> None:
    load_engine(bundle, threads=1, mmap_folder=tmp_path).close()
    (path,) = tmp_path.iterdir()
    # blocks of 16 channels, made with AVX-512, are read as blocks of 8 with AVX2
    assert b"nchwc:Conv" not in path.read_bytes()


@pytest.mark.parametrize("damage", [lambda data: data[:999], lambda data: data[:-9] + bytes(9)])
def test_a_damaged_file_says_what_to_do(damage: Any, bundle: Path, tmp_path: Path) -> None:
    load_engine(bundle, threads=1, mmap_folder=tmp_path).close()
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(EngineError, match=rf"{path.stem}.* is damaged\. Remove it, and it is made"):
        load_engine(bundle, threads=1, mmap_folder=tmp_path)
    path.unlink()
    load_engine(bundle, threads=1, mmap_folder=tmp_path).close()
    path = next(tmp_path.iterdir())
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match=r"mmap_folder .* cannot be read"):
        load_engine(bundle, threads=1, mmap_folder=tmp_path)


def test_what_cannot_be_mapped_is_refused(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"mmap_folder .* cannot be written"):
        load_engine(bundle, mmap_folder=tmp_path / "file")
    graph = tmp_path / "outside.onnx"
    graph.write_bytes(model_with("initializer", True).SerializeToString())
    with pytest.raises(EngineError, match="weights in other files, and cannot be mapped"):
        load_engine(graph, mmap_folder=tmp_path)
    more: list[dict[str, Any]] = [{"optimize": False}, {"provider": "CUDAExecutionProvider"}]
    for wrong in more:
        with pytest.raises(EngineError, match="optimized for the CPU; leave it out"):
            OnnxRuntimeEngine(bundle / "model.onnx", mmap_folder=tmp_path, **wrong)
    with pytest.raises(EngineError, match="OpenVINO has no mmap_folder"):
        load_engine(bundle, runtime="openvino", mmap_folder=tmp_path)
    assert names(tmp_path) == ["file", "outside.onnx"]
