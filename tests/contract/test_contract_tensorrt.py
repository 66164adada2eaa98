"""The contract on TensorRT, from the command line to the kept engine, against a fake runtime.

Random weights and no GPU: that the right file is kept for the right reason, nothing about speed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from regcache_deploy.bundling.certify import certify_bundle
from regcache_deploy.cli.main import main
from regcache_deploy.contract.candidates import Candidates
from regcache_deploy.quantization.baselines import make_baseline
from regcache_deploy.quantization.keep_float import FloatChoice
from regcache_deploy.quantization.plan import make_plan
from regcache_deploy.quantization.tensorrt import for_tensorrt
from regcache_engines.bundle import Bundle
from regcache_engines.files import sha256_file
from regcache_engines.load import load_engine
from regcache_engines.tensorrt.engine import TensorRTEngine
from regcache_engines.tensorrt.sidecar import Sidecar
from regcache_export.bundle import write_bundle
from regcache_export.targets import GraphOptions
from regcache_export.verify import verify_bundle
from tests.engines.tensorrt_onnx_fake import FakeMachine, machine_with
from tests.tiny_plans import PREPROCESS, tiny_encoder, tiny_images, tiny_plan, tiny_regcache

pytest.importorskip("onnxruntime")

ANY = ["--max-drop", 100, "--min-speedup", 1e-6]
TOO_SLOW = ["--max-drop", 100, "--min-speedup", 1e3]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certified bundle for TensorRT, one of a fixed batch, and images of three classes."""
    folder = tmp_path_factory.mktemp("run")
    encoder = tiny_encoder(width=64, heads=4)
    tokens, cache = encoder.embed(tiny_images(8, seed=3)), tiny_regcache(encoder)
    naive = make_baseline("naive").calibrate(encoder, tokens, regcache=cache)
    calibration = for_tensorrt(naive, tokens, True)
    head = torch.nn.functional.normalize(torch.randn(4, encoder.spec.output_dim), dim=-1)
    plan = make_plan(
        calibration,
        regcache_config=cache.config,
        preprocess=PREPROCESS,
        text_features=head,
        labels=("cat", "dog", "été", "four"),
        logit_scale=50.0,
        provenance={"model": "tiny", "baseline": "naive", "seed": 0},
    )
    plan.save(folder)
    options = GraphOptions(target="tensorrt")
    pixels = torch.randint(0, 256, (3, 32, 24, 3), dtype=torch.uint8)
    certify_bundle(
        write_bundle(plan, folder / "t.regcache", options=options),
        plan,
        options,
        calibration,
        pixels,
    )
    write_bundle(plan, folder / "five.regcache", options=GraphOptions(target="tensorrt", batch=5))
    draw = np.random.default_rng(0)
    for name in ("cat", "dog", "four"):
        (folder / "data" / name).mkdir(parents=True)
        for index in range(8):
            drawn = draw.integers(0, 255, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(drawn).save(folder / "data" / name / f"{index}.png")
    return folder


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMachine]:
    with machine_with("tensorrt", monkeypatch) as made:
        yield made


@pytest.fixture
def build(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: Any, name: str = "t", engine: str = "tensorrt") -> tuple[int, Any]:
        options = ["--engine", engine, "--output", tmp_path / "out", "--data", run_folder / "data"]
        options += ["--seconds", 0.1, "-q", *arguments]
        code = main(["build", str(run_folder / f"{name}.regcache"), *map(str, options)])
        printed = capsys.readouterr()
        if code or "--json" not in arguments:
            return code, printed
        return code, json.loads(printed.out)

    return call


def engines(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "out").glob("*.engine"))


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
def test_int8_is_kept_with_its_engine(
    name: Any, build: Any, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with machine_with(name, monkeypatch) as machine:
        code, found = build(*ANY, "--json", engine=name)
        assert code == 0, found
        assert machine.builds == 2  # INT8 and float; the control is the float engine again
        (path,) = engines(tmp_path)
        with TensorRTEngine(path) as engine:
            features = engine.infer(tiny_images(3).numpy())
    bundle = run_folder / "t.regcache"
    assert (found["kept"], found["path"]) == ("int8", str(bundle))
    assert found["engine_file"] == str(path)
    assert Sidecar.read(path.with_suffix(".json")).onnx_sha256 == sha256_file(bundle / "model.onnx")
    assert list(found["engines"]) == ["int8", "float"]
    assert found["engines"]["int8"]["layers"]["int8_gemm"] > 0
    assert "int8_gemm" not in found["engines"]["float"]["layers"]
    assert found["speed_measured_at"]["gpu"] == "NVIDIA H100"
    assert found["speed_measured_at"]["engine"] == f"{name} 11.4.0.106"
    assert found["speed_measured_at"]["control"]["rounds"] > 0
    with load_engine(bundle) as cpu:
        np.testing.assert_allclose(features, cpu.infer(tiny_images(3).numpy()), atol=1e-5)


def test_the_float_file_has_a_half_body(
    machine: FakeMachine, build: Any, run_folder: Path, tmp_path: Path
) -> None:
    code, printed = build(*TOO_SLOW)
    assert code == 0, printed.err
    lines = printed.out.splitlines()
    assert lines[0] == "kept: float file (FP16)"
    (path,) = engines(tmp_path)
    assert lines[2] == f"engine: {path}"
    assert "NVIDIA H100, batch 1; the float file against itself" in " ".join(printed.out.split())
    place = tmp_path / "out" / "t-float" / "t-float.regcache"
    assert Bundle.open(place).manifest["quantized_linears"] == 0
    assert Sidecar.read(path.with_suffix(".json")).onnx_sha256 == sha256_file(place / "model.onnx")
    with TensorRTEngine(path) as engine:  # other weights' codes are gone: it is the encoder itself
        features = engine.infer(tiny_images(2).numpy())
    encoder = tiny_encoder(width=64, heads=4)
    wanted = encoder(tiny_images(2))
    cosine = torch.nn.functional.cosine_similarity(torch.from_numpy(features), wanted)
    assert cosine.min() > 0.999


def test_a_broken_promise_ends_the_candidate(
    machine: FakeMachine, build: Any, tmp_path: Path
) -> None:
    machine.in_half = {"blocks.1.mlp.fc1"}
    code, found = build(*ANY, "--json")
    assert code == 0, found
    int8 = found["tried"][0]
    assert not int8["keep"]
    assert "promise" in int8["reasons"][0]
    assert "blocks.1.mlp.fc1/MatMul" in int8["reasons"][0]
    assert found["kept"] == "float"
    assert found["speed_measured_at"]["control"] is None  # nothing was timed
    assert engines(tmp_path) == [Path(found["engine_file"])]
    code, found = build(*ANY, "--json", "--layer-check", "warn")
    assert (code, found["kept"]) == (0, "int8")
    assert list(found["engines"]["int8"]["broken_promises"]) == ["blocks.1.mlp.fc1/MatMul"]


def test_sensitive_linears_in_float(
    machine: FakeMachine, build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = frozenset({"blocks.1.mlp.fc2", "blocks.0.attn.qkv"})
    choice = FloatChoice(names, -0.1, within=True)
    monkeypatch.setattr(Candidates, "choose_layers", lambda *a: choice)
    machine.in_half = {"blocks.1.mlp.fc2"}  # breaks INT8's promise, and is none of the mixed file's
    code, found = build(*ANY, "--json")
    assert code == 0, found
    assert found["kept"] == "mixed"
    assert found["tried"][1]["float_layers"] == sorted(names)
    assert list(found["engines"]) == ["int8", "mixed", "float"]
    place = Path(found["path"])
    bundle = Bundle.open(place)
    assert bundle.manifest["quantized_linears"] == bundle.manifest["linears"] - 2
    report = verify_bundle(bundle)
    report.check()
    assert report.images == 3
    (path,) = engines(tmp_path)
    assert Sidecar.read(path.with_suffix(".json")).onnx_sha256 == sha256_file(bundle.model_path)


def test_overflow_in_int8_ends_the_candidate_in_float_the_command(
    machine: FakeMachine, build: Any, tmp_path: Path
) -> None:
    machine.overflows = "int8"
    code, found = build(*ANY, "--json")
    assert code == 0, found
    assert found["kept"] == "float"
    assert "does not run" in found["tried"][0]["reasons"][0]
    assert "NaN" in found["tried"][0]["reasons"][0]
    for path in (tmp_path / "out").iterdir():
        if path.is_file():
            path.unlink()
    machine.overflows = "float"
    code, printed = build(*ANY)
    assert code == 7
    assert "NaN" in printed.err
    assert not engines(tmp_path)
    assert not list((tmp_path / "out").glob("*.json"))


def test_a_fixed_batch_takes_its_own_profile(
    machine: FakeMachine, build: Any, tmp_path: Path
) -> None:
    code, found = build(*ANY, "--json", name="five")  # 12 images judge: 5, 5 and 2 filled up
    assert code == 0, found
    assert found["speed_measured_at"]["batch"] == 5
    assert found["speed_measured_at"]["profile"] == {"min": 5, "opt": 5, "max": 5}
    assert found["tried"][0]["drop"]["n"] == 12


def test_batches_of_a_larger_profile(machine: FakeMachine, build: Any) -> None:
    profile = ["--min-batch", 8, "--opt-batch", 8, "--max-batch", 16, "--batch", 8]
    code, found = build(*ANY, "--json", *profile)
    assert code == 0, found
    assert found["tried"][0]["drop"]["n"] == 12


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--batch", 64], 2, "outside of the engine's profile 1 to 32"),
        (["--strip-weights"], 2, "--strip-weights"),
        (["--sm", 89], 2, "add --sm 90"),
        (["--max-drop", -1], 2, "out of range"),
        (["--opt-batch", 64], 7, "min <= opt <= max"),
    ],
)
def test_refused_before_anything_is_built(
    machine: FakeMachine, build: Any, tmp_path: Path, arguments: Any, code: int, message: str
) -> None:
    found, printed = build("--min-speedup", 1.02, *arguments)
    assert found == code
    assert message in printed.err
    assert machine.builds == 0
    assert not (tmp_path / "out").exists()


def test_a_portable_bundle_is_refused(
    machine: FakeMachine, build: Any, run_folder: Path, tmp_path: Path
) -> None:
    write_bundle(tiny_plan(), run_folder / "portable.regcache")
    code, printed = build("--max-drop", 0, name="portable")
    assert code == 5
    assert "export it with --target tensorrt" in printed.err
    assert machine.builds == 0


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
def test_without_a_gpu_nothing_is_read_or_built(
    name: Any, build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT-RTX could build here; but nothing could be timed."""

    def never(*arguments: Any) -> None:
        raise AssertionError("read")

    monkeypatch.setattr("regcache_deploy.contract.run.load_judge_data", never)
    monkeypatch.setattr(Candidates, "of", never)
    with machine_with(name, monkeypatch, gpu=False) as machine:
        code, printed = build("--max-drop", 0.5, "--min-speedup", 1.02, engine=name)
        assert machine.builds == 0
    assert code == 7
    (line,) = printed.err.splitlines()
    assert f"{name} needs an NVIDIA GPU, and this machine has none: no driver" in line
    assert not (tmp_path / "out").exists()
