"""`regcache bench` on GPU engines, against fakes of driver and runtime: there is no GPU here."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from regcache_deploy.bench import measure
from regcache_deploy.bench.measure import Bench, Settings, row_columns
from regcache_deploy.bench.memory import Peak
from regcache_deploy.bench.results import write_rows
from regcache_deploy.bench.subjects import subjects_of
from regcache_deploy.cli.main import main
from regcache_deploy.evaluation import engines as evaluated
from regcache_deploy.evaluation.engines import ENGINES, ON_GPU, open_engine
from regcache_deploy.work.progress import Reporter
from regcache_engines.bundle import Bundle
from regcache_engines.engine import Engine
from regcache_engines.load import load_engine
from regcache_export.bundle import write_bundle
from regcache_export.targets import GraphOptions
from tests.bench.test_bench_environment import fake_nvml
from tests.engines.tensorrt_onnx_fake import machine_with
from tests.tiny_plans import tiny_images, tiny_plan


class Opener:
    """ONNX Runtime's CPU under any name; notes the batch sizes that each engine is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[int, ...]]] = []

    def __call__(
        self, name: str, path: Path, threads: int | None, batches: Any, cache: Path
    ) -> Engine:
        self.asked.append((name, tuple(batches)))
        return load_engine(path, threads=1)


def bench(bundle: Path, folder: Path, opener: Opener, **settings: Any) -> Bench:
    subjects = subjects_of(Bundle.open(bundle), ("int8",), folder)
    pixels = (tiny_images(8).permute(0, 2, 3, 1) * 20 + 128).clamp(0, 255).byte().numpy()
    return Bench(
        subjects,
        ["onnxruntime", "tensorrt"],
        {subjects[0].name: pixels},
        Settings(rounds=1, warmup=1, **settings),
        folder,
        Reporter(quiet=True),
        opener,
    )


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tiny_plan(), tmp_path / "t.regcache")


def test_clocks_are_read_behind_every_timing(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml, reads = fake_nvml(), iter([1755, 1200])
    nvml.nvmlDeviceGetClockInfo = lambda handle, kind: next(reads) if kind == 1 else 2619
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    rows = bench(bundle, tmp_path, Opener(), batches=(1, 4), memory=False).run()
    columns = [row_columns(row) for row in rows]
    found = {(c["engine"], c["infer_batch_size"]): c.get("gpu_sm_clock_mhz") for c in columns}
    assert found["tensorrt", 1] == 1755
    assert found["tensorrt", 4] == 1200
    assert found["onnxruntime", 1] is None  # a CPU's figure has nothing to do with it
    write_rows(tmp_path / "rows.csv", columns, {"gpu": "Test GPU", "gpu_sm_clock_mhz": 210})
    with (tmp_path / "rows.csv").open(newline="") as file:
        clocks = [row["gpu_sm_clock_mhz"] for row in csv.DictReader(file)]
    assert clocks == ["210", "210", "1755.0", "1200.0"]  # a CPU's row has the environment's


def test_memory_is_asked_of_the_engine_that_was_timed(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def peak(engine: str, model: Path, threads: Any, batch: int, cache: Path, profile: Any) -> Peak:
        asked.append((engine, batch, profile))
        return Peak(100.0, 50.0, 7.0 if engine in ON_GPU else None)

    monkeypatch.setattr(measure, "peak_memory", peak)
    rows = bench(bundle, tmp_path, Opener(), batches=(1, 4)).run()
    assert ("tensorrt", 4, (1, 4)) in asked
    by = {row.engine: row_columns(row) for row in rows}
    assert by["tensorrt"]["gpu_memory_mib"] == 7.0
    assert "gpu_memory_mib" not in by["onnxruntime"]


def test_a_fixed_batch_asks_for_its_own_profile(tmp_path: Path) -> None:
    fixed = write_bundle(tiny_plan(), tmp_path / "f.regcache", options=GraphOptions(batch=3))
    opener = Opener()
    rows = bench(fixed, tmp_path, opener, batches=(1, 3), memory=False).run()
    assert opener.asked == [("onnxruntime", (3,)), ("tensorrt", (3,))]
    assert [bool(row.reason) for row in rows] == [True, False] * 2


def test_a_bundle_for_tensorrt_is_compared_with_half_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the command line to the fake runtime."""
    from tests.bundling.test_tensorrt_certificate import calibrated, plan_of

    plan = plan_of(calibrated())
    plan.save(tmp_path)
    path = write_bundle(plan, tmp_path / "t.regcache", options=GraphOptions(target="tensorrt"))
    with machine_with("tensorrt", monkeypatch) as machine:
        words = ["bench", str(path), "--engine", "tensorrt", "--batch", "1,2", "--rounds", "1"]
        assert main([*words, "--no-memory", "--json", "-q"]) == 0
        assert machine.builds == 2
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["precision"], row["infer_batch_size"]) for row in rows] == [
        ("fp16", 1),
        ("fp16", 2),
        ("int8", 1),
        ("int8", 2),
    ]
    assert all(row["speedup_over"] == "fp16" for row in rows[2:])


def test_an_engine_of_bench_is_held_against_the_promise_of_build(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """`regcache bench` measures it and says so; the same engine must not pass `regcache build`."""
    from tests.bundling.test_tensorrt_certificate import calibrated, plan_of

    options = GraphOptions(target="tensorrt")
    path = write_bundle(plan_of(calibrated()), tmp_path / "t.regcache", options=options)
    engines = tmp_path / "engines"
    with machine_with("tensorrt", monkeypatch) as machine:
        machine.in_half = {"blocks.1.mlp.fc1"}
        for model in (path / "model.onnx", Bundle.open(path)):  # built, then found
            caplog.clear()
            open_engine("tensorrt", model, None, (1, 8, 32), engines).close()
            (record,) = caplog.records
            assert "breaks the static check's promise for 1 products" in record.getMessage()
            assert "blocks.1.mlp.fc1/MatMul: found half_gemm" in record.getMessage()
        words = ["build", str(path), "--engine", "tensorrt", "--output", str(engines), "-q"]
        assert main(words) == 7
        assert "first blocks.1.mlp.fc1/MatMul: found half_gemm" in capsys.readouterr().err
        assert main([*words, "--layer-check", "warn", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["reused"], found["promise_kept"]) == (True, False)
        assert machine.builds == 1
        # a sidecar that does not say what became of the products
        (sidecar,) = engines.glob("*.json")
        sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"products": {}}))
        assert main(words) == 7
        assert machine.builds == 2


def test_without_onnx_bench_says_that_no_promise_was_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    options = GraphOptions(target="tensorrt")
    path = write_bundle(tiny_plan(), tmp_path / "t.regcache", options=options)
    monkeypatch.setattr(evaluated, "is_installed", lambda module: False)
    with machine_with("tensorrt", monkeypatch):
        open_engine("tensorrt", path / "model.onnx", None, (1,), tmp_path / "engines").close()
    assert "without onnx it is not checked" in caplog.text


def test_every_engine_of_the_issue_has_a_name() -> None:
    assert {"onnxruntime", "openvino", "cuda", "tensorrt_ep", "tensorrt"} <= ENGINES.keys()
    assert ENGINES.keys() - ON_GPU == {"onnxruntime", "openvino"}
