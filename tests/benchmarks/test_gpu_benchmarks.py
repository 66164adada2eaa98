"""The GPU benchmarks, as far as they go without one: what they would time, and how they refuse."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gpu
import gpu_ceiling
import gpu_probe
import numpy as np
import pytest
import torch
from gpu_models import FORMS, SPECS, small_spec

from regcache_engines.errors import EngineError
from regcache_engines.tensorrt import probe as probing
from regcache_engines.tensorrt.engine import TensorRTEngine
from tests.engines.tensorrt_fakes import (
    H100,
    SIDECAR,
    FakeDevice,
    fake_machine,
    images,
    write,
)
from tests.export.tensorrt_plans import require_rtx


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (probing, gpu_ceiling, gpu_probe):
        monkeypatch.setattr(module, "find_gpu", lambda device_id=0: (None, "no driver"))


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (gpu, ["--engine", "tensorrt_rtx"]),
        (gpu, ["--engine", "tensorrt", "--sweep"]),
        (gpu_ceiling, []),
    ],
    ids=["rtx", "full", "ceiling"],
)
def test_without_a_gpu_nothing_is_measured(
    no_gpu: None,
    module: Any,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "never.csv"
    monkeypatch.setattr(sys, "argv", ["benchmark", *words, "--output", str(output)])
    assert module.main() == EngineError.exit_code == 7
    captured = capsys.readouterr()
    assert "nothing measured" in captured.err
    assert len(captured.err.splitlines()) == 1
    assert not captured.out
    assert not output.exists()


@pytest.mark.needs_trt
def test_the_probe_reports_before_it_refuses(
    no_gpu: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    require_rtx()
    assert gpu_probe.main() == 7
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    rtx = found["builds"]["tensorrt_rtx"]["result"]
    assert (rtx["layers"]["int8_gemm"], rtx["layers"]["int8_mha"]) == (8, 2)
    assert "no driver" in rtx["not_run"]
    assert found["gpu"] is None
    assert not any(device["ok"] for device in found["devices"].values())
    assert len(captured.err.splitlines()) == 1


def options(**changes: Any) -> argparse.Namespace:
    values = {"models": list(SPECS)[:3], "sweep": False, "rounds": 4, "calls": 2, "batches": [1]}
    return argparse.Namespace(**values | changes)


def test_every_variant_is_timed() -> None:
    chosen = gpu.variants(options())
    assert Counter((v.model, v.form, v.regcache is not None) for v in chosen) == {
        (model, form, regcache): 1
        for model in ("ViT-B-32", "ViT-B-16", "ViT-L-14")
        for form in FORMS
        for regcache in (False, True)
    }
    assert len({v.label for v in chosen}) == 18
    sweep = gpu.variants(options(models=["ViT-B-16"], sweep=True))
    counts = {(v.regcache.prefix_count, v.regcache.delete_count) for v in sweep if v.regcache}
    assert len(sweep) == len(counts) == 20
    # 197 tokens: k~ 5 ends on a tile border without a prefix, with tau 4 it is short of one
    assert {(0, 5), (4, 5), (0, 0), (4, 16)} <= counts


def test_kernels_are_timed_without_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = fake_machine(monkeypatch)
    with TensorRTEngine(write(tmp_path)) as engine:
        built = {gpu.Variant("ViT-B-32", "int8", None): gpu.Built(engine, SIDECAR, 1.0)}
        assert list(gpu.replayed(built, 2, options()).values()) == [[]]  # never seen
        engine.infer(images(2))
        device.log.clear()
        (times,) = gpu.replayed(built, 2, options()).values()
        assert device.log == ["launch", "launch", "synchronize"] * 4
        assert len(times) == 4
        engine.infer(images(2))


def test_the_probe_goes_on_whatever_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise TypeError("factory function returned nullptr")

    why = "TypeError: factory function returned nullptr"
    assert gpu_probe.attempt(fail) == {"ok": False, "why": why}
    device = FakeDevice()
    monkeypatch.setattr(gpu_probe, "open_device", lambda name: device)
    assert gpu_probe.round_trip("fake") == "fake"
    assert device.released
    monkeypatch.setattr(device, "copy", lambda *words: None)
    with pytest.raises(EngineError, match="gives back other bytes"):
        gpu_probe.round_trip("fake")


def test_calls_are_interleaved_and_described() -> None:
    """Fake engines: every variant is called equally often, in an order that changes."""
    called: list[str] = []

    def engine(name: str) -> Any:
        return SimpleNamespace(infer=lambda images: called.append(f"{name} {len(images)}"))

    chosen = [gpu.Variant("ViT-B-32", form, None) for form in FORMS]
    built = {v: gpu.Built(engine(v.form), SIDECAR, 0.999) for v in chosen}
    times = gpu.interleaved(built, 2, options())
    warm, timed = called[:9], called[9:]
    assert warm == [f"{form} 2" for form in FORMS for _ in range(3)]
    assert Counter(timed) == {f"{form} 2": 8 for form in FORMS}
    rounds = [timed[start : start + 6] for start in range(0, 24, 6)]
    assert len({tuple(order) for order in rounds}) > 1
    assert all(len(values) == 8 for values in times.values())
    builder = SimpleNamespace(
        engine="tensorrt", probe=SimpleNamespace(version="11.4.0.106", gpu=H100)
    )
    row = gpu.row(builder, chosen[2], built[chosen[2]], 2, [0.001, 0.002, 0.004], [])  # type: ignore[arg-type]
    assert (row["gpu_ms"], row["broken_promises"]) == (None, 0)
    assert (row["engine"], row["gpu"], row["p50_ms"]) == ("tensorrt 11.4.0.106", "NVIDIA H100", 2.0)
    assert (row["images_per_s"], row["regcache"], row["tau"]) == (1000.0, False, 0)


def test_results_are_named_by_the_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = gpu.default_output(H100, "tensorrt-11.4.0.106")
    assert path.name == "gpu-nvidia-h100-tensorrt-11.4.0.106.csv"
    assert path.parent.name == "results"
    gpu.write_csv([{"engine": "x", "batch": 1}], tmp_path / "new" / "x.csv")
    with (tmp_path / "new" / "x.csv").open() as file:
        assert list(csv.DictReader(file)) == [{"engine": "x", "batch": "1"}]


def test_the_ceilings_parts_compute() -> None:
    """On the CPU: the same closures that a GPU would replay."""
    spec = small_spec()
    assert gpu_ceiling.linear_shapes(spec, 2)[:2] == [(100, 128, 384), (100, 128, 128)]
    made = gpu_ceiling.parts(spec, 1, torch.device("cpu"))
    assert list(made) == ["linears_fp16", "linears_int8", "attention_fp16", "encoder_fp16"]
    waits: list[int] = []
    with torch.no_grad():
        times = gpu_ceiling.interleaved(made, 2, 1, lambda: waits.append(1))
        assert torch.isfinite(made["encoder_fp16"]()).all()
    assert {len(values) for values in times.values()} == {2}
    assert len(waits) == 2 * 2 * 4
    row = gpu_ceiling.row(H100, "ViT-B-32", 8, "linears_int8", list(np.full(4, 0.002)))
    assert row["images_per_s"] == 4000.0
    assert str(row["engine"]).startswith("torch ")
