"""What TensorRT-RTX makes of the graphs, on a machine without a GPU. Weights are random."""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from regcache_deploy.cli.main import main
from regcache_engines.errors import EngineError
from regcache_engines.files import atomic_write_bytes
from regcache_engines.tensorrt.build_options import BuildOptions
from regcache_engines.tensorrt.builder import BuildResult, EngineBuilder
from regcache_engines.tensorrt.sidecar import Profile, Sidecar
from regcache_export.bundle import write_bundle
from regcache_export.checks import check_tensorrt
from regcache_export.graph import build_model, serialize
from regcache_export.plan import Plan
from regcache_export.targets import GraphOptions
from tests.export.tensorrt_plans import SHAPES, random_plan, require_gpu_engine, require_rtx

pytestmark = pytest.mark.needs_trt

TENSORRT = GraphOptions(target="tensorrt")


@pytest.fixture(scope="module")
def builder() -> EngineBuilder:
    require_rtx()
    return EngineBuilder("tensorrt_rtx")


def build(builder: EngineBuilder, plan: Plan, folder: Path) -> BuildResult:
    """Build, strict: every promise of the static check must be kept."""
    model = build_model(plan, options=TENSORRT)
    return builder.build(serialize(model), folder, promise=check_tensorrt(model).promise)


SMALL = replace(SHAPES["CLIP B/32"], width=128, heads=2, mlp_width=256)


def small() -> Plan:
    return random_plan(SMALL)


def test_a_broken_promise_is_an_error(builder: EngineBuilder, tmp_path: Path) -> None:
    """The packed QKV with its Split, which the builder runs in float16."""
    plan = random_plan(SMALL, "int8_linears", asymmetric=False)
    model = build_model(plan, options=GraphOptions())
    data, promise = serialize(model), {"blocks.0.attn.qkv/MatMul": "int8_gemm"}
    with pytest.raises(EngineError, match=r"blocks\.0\.attn\.qkv/MatMul.*--layer-check warn"):
        builder.build(data, tmp_path, promise=promise)
    assert not list(tmp_path.glob("*.engine"))
    assert not list(tmp_path.glob("*.json"))
    kept = builder.build(data, tmp_path, promise=promise, strict=False)
    assert list(kept.sidecar.broken_promises) == ["blocks.0.attn.qkv/MatMul"]
    with pytest.raises(EngineError, match="promise"):
        builder.build(data, tmp_path, promise=promise)  # found again, and still not good enough


def test_two_builds_of_one_key_build_once(
    builder: EngineBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    real = EngineBuilder._compile

    def counting(self: EngineBuilder, *arguments: object) -> object:
        compiled.append(1)
        return real(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(EngineBuilder, "_compile", counting)
    results: list[BuildResult] = []
    threads = [
        threading.Thread(target=lambda: results.append(build(builder, small(), tmp_path)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(compiled) == 1
    assert sorted(result.reused for result in results) == [False, True]
    assert results[0].path == results[1].path
    results[0].path.write_bytes(b"damaged")
    assert not build(builder, small(), tmp_path).reused


def test_options_reach_the_engine(builder: EngineBuilder, tmp_path: Path) -> None:
    data, steps = serialize(build_model(small(), options=TENSORRT)), []
    options = BuildOptions(Profile(2, 2, 4), workspace_mib=64, optimization_level=1, sms=(86, 89))
    result = builder.build(
        data, tmp_path, options, on_progress=lambda phase, done, total: steps.append((done, total))
    )
    assert steps
    assert all(1 <= done <= total for done, total in steps)
    again = Sidecar.read(result.path.with_suffix(".json"))
    assert again == result.sidecar
    assert (again.sms, again.profile, again.image_shape) == (
        (86, 89),
        Profile(2, 2, 4),
        (3, 224, 224),
    )
    other = builder.build(data, tmp_path, replace(options, sms=(89,)))
    assert other.path != result.path


HALF, FLOAT, INT32 = TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.INT32


@pytest.mark.parametrize("ends", [(HALF, FLOAT), (FLOAT, HALF), (INT32, FLOAT)])
def test_no_other_types_at_the_ends(
    builder: EngineBuilder, tmp_path: Path, ends: tuple[int, int]
) -> None:
    """Four bytes a value were copied whatever the graph takes."""
    image = helper.make_tensor_value_info("image", ends[0], ["b", 3, 4, 4])
    features = helper.make_tensor_value_info("features", ends[1], ["b", 3])
    nodes = [
        helper.make_node("Cast", ["image"], ["half"], to=HALF),
        helper.make_node("ReduceMean", ["half", "axes"], ["mean"], keepdims=0),
        helper.make_node("Cast", ["mean"], ["features"], to=ends[1]),
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])
    graph = helper.make_graph(nodes, "g", [image], [features], [axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with pytest.raises(EngineError, match="cast inside of the graph"):
        builder.build(model.SerializeToString(), tmp_path)


REFUSED: dict[str, tuple[BuildOptions, str]] = {
    "an SM that it does not have": (BuildOptions(sms=(90,)), "SM 90"),
    "version compatible": (BuildOptions(version_compatible=True), "libnvinfer_lean"),
    "stripped": (BuildOptions(strip_weights=True), "failed to build"),
    "hardware": (BuildOptions(hardware="ampere_plus"), "--sm"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_built_is_refused(builder: EngineBuilder, tmp_path: Path, case: str) -> None:
    options, message = REFUSED[case]
    with pytest.raises(EngineError, match=message) as caught:
        builder.build(serialize(build_model(small(), options=TENSORRT)), tmp_path, options)
    assert caught.value.exit_code == 7
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]


def test_a_refused_graph_names_the_reason(builder: EngineBuilder, tmp_path: Path) -> None:
    plan = replace(small(), matmuls={})
    data = serialize(build_model(plan, options=GraphOptions()))  # fc2 has a zero point
    with pytest.raises(EngineError, match=r"parser refuses.*zero point.*regcache check"):
        builder.build(data, tmp_path)
    with pytest.raises(EngineError, match="hides whether"):
        builder.build(b"no model", tmp_path)


@pytest.mark.parametrize("how", ["logged", "raised"])
def test_out_of_memory_says_what_to_lower(
    builder: EngineBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    real = builder._trt

    class Exhausted:
        """A builder for which the memory does not suffice, as TensorRT reports it."""

        def __init__(self, logger: Any) -> None:
            self._builder, self._logger = real.Builder(logger), logger

        def __getattr__(self, name: str) -> Any:
            return getattr(self._builder, name)

        def build_serialized_network(self, network: Any, config: Any) -> None:
            if how == "raised":
                raise MemoryError("std::bad_alloc")
            text = "[tunableGraph.cpp::create] Error Code 2: OutOfMemory (no further information)"
            self._logger.log(real.ILogger.ERROR, text)

    class Module:
        Builder = Exhausted

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    monkeypatch.setattr(builder, "_trt", Module())
    with pytest.raises(EngineError, match=r"Memory.*Lower --workspace") as caught:
        build(builder, small(), tmp_path)
    assert caught.value.exit_code == 7
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]


def test_warnings_of_the_builder_are_passed_on(
    builder: EngineBuilder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    real = builder._trt
    said = ["Weights of layer fc1 are beyond float16.", *(f"warning {i}" for i in range(9))]

    class Anxious:
        def __init__(self, logger: Any) -> None:
            self._builder, self._logger = real.Builder(logger), logger

        def __getattr__(self, name: str) -> Any:
            return getattr(self._builder, name)

        def build_serialized_network(self, network: Any, config: Any) -> Any:
            for text in [said[0], *said]:
                self._logger.log(real.ILogger.WARNING, text)
            return self._builder.build_serialized_network(network, config)

    class Module:
        Builder = Anxious

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    monkeypatch.setattr(builder, "_trt", Module())
    build(builder, small(), tmp_path)
    found = [record.getMessage() for record in caplog.records]
    assert found == [f"tensorrt_rtx: {text}" for text in said[:5]]


def test_full_tensorrt_without_a_gpu_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`Builder` is never made: without a driver it could end the interpreter."""
    from regcache_engines.tensorrt import probe as probing

    bundle = write_bundle(small(), tmp_path / "b.regcache", options=TENSORRT)
    words = ["build", str(bundle), "--engine", "tensorrt", "--output", str(tmp_path / "engines")]
    monkeypatch.setattr(probing, "find_gpu", lambda device_id=0: (None, "no NVIDIA driver"))
    for module, reason in (
        (SimpleNamespace(__version__="11.4"), "needs an NVIDIA GPU"),
        (None, "NVIDIA's package index"),
    ):
        probing.import_runtime.cache_clear()
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        if module is not None:
            module.Builder = module.OnnxParser = None
        assert main(words) == 7
        (line,) = capsys.readouterr().err.splitlines()
        assert reason in line
    probing.import_runtime.cache_clear()


def test_a_fixed_batch_builds_for_itself(builder: EngineBuilder, tmp_path: Path) -> None:
    model = build_model(small(), options=replace(TENSORRT, batch=3))
    result = builder.build(serialize(model), tmp_path, BuildOptions(Profile(3, 3, 3)))
    assert result.sidecar.layers["int8_mha"] == 2
    with pytest.raises(EngineError, match="fixed batch of 3"):
        builder.build(serialize(model), tmp_path)


def test_commands(
    builder: EngineBuilder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_bundle(small(), tmp_path / "b.regcache", options=TENSORRT)
    engines = tmp_path / "engines"
    words = ["build", str(bundle), "--engine", "tensorrt_rtx", "--output", str(engines), "--json"]
    assert main(words) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["layers"]["int8_gemm"] == 8
    assert document["promise_kept"]
    assert Path(document["path"]).is_file()
    assert main(words[:-1]) == 0
    assert "found" in capsys.readouterr().out


def test_uint8_pixels_build(builder: EngineBuilder, tmp_path: Path) -> None:
    plan = replace(small(), preprocess={"mean": [0.5] * 3, "std": [0.25] * 3})
    model = build_model(plan, options=replace(TENSORRT, pixels="nhwc"))
    onnx.checker.check_model(model, full_check=True)
    sidecar = builder.build(serialize(model), tmp_path).sidecar
    assert (sidecar.input_dtype, sidecar.image_shape) == ("uint8", (224, 224, 3))


def test_an_interrupted_write_leaves_no_engine(
    builder: EngineBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        if path.suffix == ".json":
            raise OSError(28, "No space left on device")
        atomic_write_bytes(path, data)

    monkeypatch.setattr("regcache_engines.tensorrt.builder.atomic_write_bytes", full)
    monkeypatch.setattr("regcache_engines.tensorrt.sidecar.atomic_write_bytes", full)
    with pytest.raises(EngineError, match="No space left"):
        build(builder, small(), tmp_path)
    assert not list(tmp_path.glob("*.engine"))


@pytest.mark.needs_gpu
def test_an_engine_runs(tmp_path: Path) -> None:
    """Builds, runs and compares with ONNX Runtime on the CPU; wants a GPU."""
    require_gpu_engine()
    import numpy as np

    from regcache_engines.load import load_engine
    from regcache_engines.tensorrt.engine import TensorRTEngine
    from regcache_engines.tensorrt.probe import ENGINES, probe

    engine = next(name for name in ENGINES if probe(name).run_refused is None)
    plan = small()
    bundle = write_bundle(plan, tmp_path / "b.regcache", options=TENSORRT)
    path = build(EngineBuilder(engine), plan, tmp_path / "engines").path
    images = np.random.default_rng(0).standard_normal((5, 3, 224, 224), dtype=np.float32)
    with TensorRTEngine(path) as gpu, load_engine(bundle) as cpu:
        features, expected = gpu.infer(images), cpu.infer(images)
        replayed = gpu.infer(images)
    cosine = (features * expected).sum(1) / (
        np.linalg.norm(features, axis=1) * np.linalg.norm(expected, axis=1)
    )
    assert cosine.min() > 0.99
    np.testing.assert_array_equal(features, replayed)
