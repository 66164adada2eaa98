"""Engines that do not belong here are refused, most of them before anything is deserialized."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from regcache_engines.errors import EngineError
from regcache_engines.files import sha256_bytes
from regcache_engines.tensorrt import engine as engine_module
from regcache_engines.tensorrt.engine import TensorRTEngine
from regcache_engines.tensorrt.probe import Probe
from tests.engines.tensorrt_fakes import (
    DATA,
    H100,
    FakeDevice,
    FakeTensorRT,
    fake_machine,
    have,
    images,
    write,
)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    return fake_machine(monkeypatch)


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
    "code of its own": ({"version_compatible": True}, {}, None, "host_code=True"),
    "no weights": ({"options": {"strip_weights": True}}, {}, None, "--strip-weights"),
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
        TensorRTEngine(path, host_code=case == "older runtime")
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
    code = bool(changes.get("version_compatible"))
    with TensorRTEngine(write(tmp_path, **changes), host_code=code) as engine:
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


@pytest.mark.parametrize("reason", ["tensorrt needs an NVIDIA GPU: no driver", "not installed"])
def test_no_gpu_or_no_runtime(
    fake: FakeDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    monkeypatch.setattr(
        engine_module, "probe", lambda name, *device: Probe(name, None, None, None, reason)
    )
    with pytest.raises(EngineError, match=reason) as caught:
        TensorRTEngine(write(tmp_path))
    assert caught.value.exit_code == 7
