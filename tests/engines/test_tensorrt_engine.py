"""The engine against fakes of runtime and device: batches, graphs, threads, bad images."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from regcache_engines.errors import EngineError
from regcache_engines.tensorrt import builder as builder_module
from regcache_engines.tensorrt import engine as engine_module
from regcache_engines.tensorrt import slot as slot_module
from regcache_engines.tensorrt.builder import EngineBuilder
from regcache_engines.tensorrt.engine import TensorRTEngine, split_batch
from regcache_engines.tensorrt.probe import Probe
from regcache_engines.tensorrt.sidecar import Profile
from tests.engines.tensorrt_fakes import (
    H100,
    FakeContext,
    FakeDevice,
    expected,
    fake_machine,
    images,
    write,
)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    return fake_machine(monkeypatch)


def test_batches_of_every_size(fake: FakeDevice, tmp_path: Path) -> None:
    with TensorRTEngine(write(tmp_path)) as engine:
        assert (engine.image_size, engine.output_dim, engine.pixels) == ((4, 4), 2, None)
        for count in (1, 3, 8, 9, 20):
            batch = images(count)
            np.testing.assert_allclose(engine.infer(batch), expected(batch), rtol=1e-6)
    assert fake.released
    with pytest.raises(EngineError, match="closed"):
        engine.infer(images(1))


def test_a_seen_batch_size_is_replayed(fake: FakeDevice, tmp_path: Path) -> None:
    with TensorRTEngine(write(tmp_path)) as engine:
        for _ in range(3):
            batch = images(4)
            np.testing.assert_allclose(engine.infer(batch), expected(batch), rtol=1e-6)
    work = [entry for entry in fake.log if entry != "synchronize"]
    # one warm-up, one capture, then replays
    assert work == ["execute 4", "capture", "launch", "launch"]


def test_without_graphs(fake: FakeDevice, tmp_path: Path) -> None:
    with TensorRTEngine(write(tmp_path), cuda_graphs=False) as engine:
        engine.infer(images(2))
        engine.infer(images(2))
    assert [entry for entry in fake.log if entry != "synchronize"] == ["execute 2"] * 2


def test_a_stream_that_cannot_be_captured(
    fake: FakeDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        FakeContext, "is_stream_capturable", lambda self, stream: False, raising=False
    )
    with TensorRTEngine(write(tmp_path)) as engine:
        engine.infer(images(2))
        engine.infer(images(2))
    assert "capture" not in fake.log


def test_a_capture_that_fails_costs_no_features(
    fake: FakeDevice,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails(stream: int) -> Any:
        fake.capturing = None
        raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(fake, "end_capture", fails)
    with TensorRTEngine(write(tmp_path)) as engine:
        for _ in range(2):
            batch = images(4)
            np.testing.assert_allclose(engine.infer(batch), expected(batch), rtol=1e-6)
    assert [entry for entry in fake.log if entry != "synchronize"] == ["execute 4"] * 2
    assert caplog.text.count("could not be captured") == 1


def test_graphs_are_no_more_than_a_bound(
    fake: FakeDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot_module, "MOST_GRAPHS", 2)
    with TensorRTEngine(write(tmp_path)) as engine:
        for count in (1, 2, 3, 1, 3):
            batch = images(count)
            np.testing.assert_allclose(engine.infer(batch), expected(batch), rtol=1e-6)
    assert fake.log.count("capture") == 2
    assert fake.log.count("launch") == 1


@pytest.mark.parametrize("kind", ["Runtime", "Builder"])
def test_what_tensorrt_does_not_make(
    kind: str, fake: FakeDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The binding raises a TypeError; why is in the log alone."""
    why = "Unable to load library: libnvinfer_builder_resource_sm90.so.11"

    class Logger:
        INTERNAL_ERROR, ERROR = 0, 1

    def nothing(logger: Any) -> None:
        logger.log(Logger.ERROR, why)
        raise TypeError("pybind11::init(): factory function returned nullptr")

    runtime = SimpleNamespace(ILogger=Logger, Runtime=nothing, Builder=nothing)
    monkeypatch.setattr(engine_module, "import_runtime", lambda name: runtime)
    monkeypatch.setattr(builder_module, "import_runtime", lambda name: runtime)
    found = Probe("tensorrt", "11.4.0.106", H100, None, None)
    monkeypatch.setattr(builder_module, "probe", lambda name: found)
    path = write(tmp_path)
    actions: dict[str, Callable[[], object]] = {
        "Runtime": lambda: TensorRTEngine(path),
        "Builder": lambda: EngineBuilder("tensorrt").layers(b""),
    }
    with pytest.raises(EngineError, match=f"makes no {kind}: {why}"):
        actions[kind]()


def test_a_shape_that_fails_is_not_remembered(
    fake: FakeDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TensorRTEngine(write(tmp_path), cuda_graphs=False) as engine:
        engine.infer(images(4))
        with monkeypatch.context() as patch:
            patch.setattr(FakeContext, "infer_shapes", lambda self: ["image"])
            with pytest.raises(EngineError, match="infer the shapes"):
                engine.infer(images(3))
        batch = images(5)[:4]
        np.testing.assert_allclose(engine.infer(batch), expected(batch), rtol=1e-6)


def test_split_batch() -> None:
    assert split_batch(9, 1, 8) == [5, 4]
    assert split_batch(16, 1, 8) == [8, 8]
    assert split_batch(1, 1, 8) == [1]
    for count in range(1, 50):
        assert sum(split_batch(count, 1, 7)) == count
    with pytest.raises(EngineError, match="--min-batch"):
        split_batch(3, 4, 8)


def test_many_threads(fake: FakeDevice, tmp_path: Path) -> None:
    """One context, eight threads: each gets its own features."""
    failures: list[object] = []
    with TensorRTEngine(write(tmp_path)) as engine:

        def work(count: int) -> None:
            batch = images(count)
            for _ in range(20):
                if not np.allclose(engine.infer(batch), expected(batch)):
                    failures.append(count)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


def test_bad_images(fake: FakeDevice, tmp_path: Path) -> None:
    with TensorRTEngine(write(tmp_path)) as engine:
        for bad in (
            images(1)[:, :, :3],
            images(1).astype(np.float64),
            np.full_like(images(1), np.nan),
        ):
            with pytest.raises(EngineError):
                engine.infer(bad)
    assert not fake.log


def test_a_batch_that_the_engine_refuses(fake: FakeDevice, tmp_path: Path) -> None:
    """The sidecar promises 16, the fake engine takes 8."""
    path = write(tmp_path, profile=Profile(1, 4, 16))
    with TensorRTEngine(path) as engine, pytest.raises(EngineError, match="outside of the engine"):
        engine.infer(images(12))
    with (
        pytest.raises(EngineError, match="--min-batch"),
        TensorRTEngine(write(tmp_path, profile=Profile(4, 4, 8))) as engine,
    ):
        engine.infer(images(2))


def test_a_full_gpu(fake: FakeDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(size: int) -> None:
        raise EngineError("cudaMalloc failed: cudaErrorMemoryAllocation")

    monkeypatch.setattr(fake, "allocate", full)
    with pytest.raises(EngineError, match="cudaMalloc"):
        TensorRTEngine(write(tmp_path))
    assert fake.released
