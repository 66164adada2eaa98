"""The engine against fakes of runtime and device: there is no GPU here.

What the fakes answer is taken from the documentation of TensorRT.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from regcache_engines.errors import EngineError
from regcache_engines.files import sha256_bytes
from regcache_engines.tensorrt import engine as engine_module
from regcache_engines.tensorrt.device import (
    DeviceBuffer,
    PinnedBuffer,
)
from regcache_engines.tensorrt.engine import TensorRTEngine, split_batch
from regcache_engines.tensorrt.probe import Gpu, Probe
from regcache_engines.tensorrt.sidecar import Profile, Sidecar

H100 = Gpu("NVIDIA H100", 90, 13000, 1)
SHAPE = (3, 4, 4)
DATA = b"an engine"

SIDECAR = Sidecar(
    key="k",
    engine="tensorrt",
    version="11.4.0.106",
    onnx_sha256="0" * 64,
    engine_sha256=sha256_bytes(DATA),
    engine_bytes=len(DATA),
    image_shape=SHAPE,
    output_dim=2,
    input_name="image",
    output_name="image_features",
    profile=Profile(1, 4, 8),
    sms=(90,),
)


# ---- fakes --------------------------------------------------------------------------------------


class FakeDevice:
    """Memory in a dictionary; a stream is a list of what was done on it, in order."""

    name = "fake"
    captures = True

    def __init__(self) -> None:
        self.memory: dict[int, np.ndarray] = {}
        self.log: list[str] = []
        self.capturing: list[Callable[[], None]] | None = None
        self.released = False

    def allocate(self, size: int) -> DeviceBuffer:
        pointer = 1000 + len(self.memory)
        self.memory[pointer] = np.zeros(size, np.uint8)
        return DeviceBuffer(pointer, size)

    def pinned(self, size: int) -> PinnedBuffer:
        return PinnedBuffer(np.zeros(size, np.uint8))

    def stream(self) -> int:
        return 7

    def copy(self, target: Any, source: Any, size: int, stream: int) -> None:
        assert stream == 7
        read = self.memory[source.pointer] if isinstance(source, DeviceBuffer) else source.array
        write = self.memory[target.pointer] if isinstance(target, DeviceBuffer) else target.array
        write[:size] = read[:size]

    def synchronize(self, stream: int) -> None:
        self.log.append("synchronize")

    def begin_capture(self, stream: int) -> None:
        self.capturing = []

    def end_capture(self, stream: int) -> Any:
        work, self.capturing = self.capturing, None
        self.log.append("capture")
        return work

    def launch(self, graph: Any, stream: int) -> None:
        self.log.append("launch")
        for kernel in graph:
            kernel()

    def release(self) -> None:
        self.released = True


class FakeContext:
    """Mean and largest pixel of every image."""

    def __init__(self, device: FakeDevice) -> None:
        self.device, self.addresses, self.count = device, dict[str, int](), 0

    def set_tensor_address(self, name: str, pointer: int) -> None:
        self.addresses[name] = pointer

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.count = shape[0]
        return shape[1:] == SHAPE and 1 <= shape[0] <= 8

    def infer_shapes(self) -> list[str]:
        return []

    def execute_async_v3(self, stream: int) -> bool:
        count = self.count

        def kernel() -> None:
            memory = self.device.memory
            images = memory[self.addresses["image"]].view(np.float32).reshape(-1, *SHAPE)[:count]
            features = memory[self.addresses["image_features"]].view(np.float32).reshape(-1, 2)
            features[:count] = np.stack([images.mean((1, 2, 3)), images.max((1, 2, 3))], 1)

        if self.device.capturing is None:
            self.device.log.append(f"execute {count}")
            kernel()
        else:
            self.device.capturing.append(kernel)
        return True


class FakeTensorRT(SimpleNamespace):
    """The part of the module that running needs."""

    def __init__(self, device: FakeDevice) -> None:
        class Logger:
            INTERNAL_ERROR, ERROR = 0, 1

        def deserialize(data: bytes) -> Any:
            if data != DATA:
                return None
            return SimpleNamespace(create_execution_context=lambda: FakeContext(device))

        super().__init__(
            ILogger=Logger,
            Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=deserialize),
        )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    device = FakeDevice()
    monkeypatch.setattr(engine_module, "import_runtime", lambda name: FakeTensorRT(device))
    monkeypatch.setattr(engine_module, "open_device", lambda name: device)
    have(monkeypatch)
    return device


def have(monkeypatch: pytest.MonkeyPatch, version: str = SIDECAR.version, gpu: Gpu = H100) -> None:
    monkeypatch.setattr(engine_module, "probe", lambda name: Probe(name, version, gpu, None, None))


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "k.engine"
    path.write_bytes(DATA)
    replace(SIDECAR, **changes).write(folder / "k.json")
    return path


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, *SHAPE), dtype=np.float32)


def expected(batch: np.ndarray) -> np.ndarray:
    return np.stack([batch.mean((1, 2, 3)), batch.max((1, 2, 3))], 1)


# ---- running ------------------------------------------------------------------------------------


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


# ---- refused before anything is deserialized ----------------------------------------------------


def damage(path: Path) -> None:
    path.write_bytes(DATA + b"!")


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], Callable[[Path], Any] | None, str]] = {
    "another version": ({"version": "10.16.1"}, {}, None, r"built by tensorrt 10\.16\.1.*again"),
    "another GPU": ({}, {"gpu": replace(H100, sm=89, name="L4")}, None, "SM 90, and L4 is SM 89"),
    "changed": ({}, {}, damage, "SHA-256"),
    "no engine": ({}, {}, lambda path: path.unlink(), "no engine"),
    "older GPU": (
        {"hardware": "ampere_plus", "sms": ()},
        {"gpu": replace(H100, sm=75)},
        None,
        "SM 75",
    ),
    "older runtime": (
        {"version_compatible": True},
        {"version": "10.9.0"},
        None,
        r"this is 10\.9\.0",
    ),
    "no sidecar": ({}, {}, lambda path: path.with_suffix(".json").unlink(), "description"),
    "sidecar cut": ({}, {}, lambda path: path.with_suffix(".json").write_text("{"), "description"),
    "newer schema": ({}, {}, lambda path: edit(path.with_suffix(".json"), schema=2), "schema 2"),
    "field missing": (
        {},
        {},
        lambda path: edit(path.with_suffix(".json"), nonsense=1),
        "description",
    ),
}


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("case", REFUSED)
def test_refused(
    fake: FakeDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    changes, machine, act, message = REFUSED[case]
    path = write(tmp_path, **changes)
    have(monkeypatch, **machine)
    if act:
        act(path)

    def never(*arguments: Any) -> Any:
        raise AssertionError("the runtime was touched")

    monkeypatch.setattr(engine_module, "import_runtime", never)
    with pytest.raises(EngineError, match=message) as caught:
        TensorRTEngine(path)
    assert caught.value.exit_code == 7


@pytest.mark.parametrize(
    ("changes", "machine"),
    [
        ({"version_compatible": True, "version": "10.9.0"}, {}),
        ({"hardware": "ampere_plus", "sms": (80,)}, {}),
        ({"sms": ()}, {}),
    ],
)
def test_compatible_engines_load(
    fake: FakeDevice, tmp_path: Path, changes: dict[str, Any], machine: dict[str, Any]
) -> None:
    with TensorRTEngine(write(tmp_path, **changes)) as engine:
        assert engine.infer(images(1)).shape == (1, 2)


def test_an_engine_that_does_not_load_gives_everything_back(
    fake: FakeDevice, tmp_path: Path
) -> None:
    path = write(tmp_path, engine_sha256=sha256_bytes(b"other"))
    path.write_bytes(b"other")
    with pytest.raises(EngineError, match="does not load"):
        TensorRTEngine(path)
    assert fake.released


def test_rtx_engines_are_asked_whether_they_are_valid(
    fake: FakeDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = FakeTensorRT(fake)
    invalid = object()
    runtime.EngineValidity = SimpleNamespace(INVALID=invalid)
    runtime.Runtime = lambda logger: SimpleNamespace(
        get_engine_validity=lambda data: (invalid, 4), deserialize_cuda_engine=None
    )
    monkeypatch.setattr(engine_module, "import_runtime", lambda name: runtime)
    with pytest.raises(EngineError, match="diagnostics 4"):
        TensorRTEngine(write(tmp_path, engine="tensorrt_rtx"))
