"""Built engines are native code: what came with a download, or of another model, is not run."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from regcache_deploy.evaluation import engines as evaluated
from regcache_engines import providers
from regcache_engines.errors import EngineError
from regcache_engines.files import sha256_bytes
from regcache_engines.onnxruntime_session import open_session
from regcache_engines.tensorrt import builder as builder_module
from regcache_engines.tensorrt.build_options import BuildOptions, Hardware
from regcache_engines.tensorrt.builder import EngineBuilder
from regcache_engines.tensorrt.probe import Gpu, Probe
from regcache_engines.tensorrt.sidecar import Sidecar, cache_key
from regcache_engines.user_cache import user_cache
from tests.engines.tensorrt_fakes import DATA, H100, SIDECAR

MODEL, TIMINGS, PLAN = b"\x08\x0a", b"timings", b"the plan of an hour"  # of IR version 10


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> EngineBuilder:
    """A builder whose TensorRT gives PLAN."""
    contract: dict[str, Any] = {
        "input_name": "image",
        "output_name": "features",
        "image_shape": (3, 4, 4),
        "output_dim": 2,
        "input_dtype": "float32",
    }
    cache = SimpleNamespace(serialize=lambda: TIMINGS)
    tensorrt = SimpleNamespace(
        Builder=lambda logger: SimpleNamespace(build_serialized_network=lambda n, c: PLAN)
    )
    logger = SimpleNamespace(messages=[], errors=[], warnings=[])
    for name, answer in {
        "make_logger": logger,
        "parse": (None, None),
        "read_contract": contract,
        "configure": (None, cache),
        "layers_from_log": [SimpleNamespace(kind="x")],
        "count_kinds": {"x": 1},
        "product_kinds": {},
        "import_runtime": tensorrt,
        "probe": Probe("tensorrt", SIDECAR.version, H100, None, None),
    }.items():
        monkeypatch.setattr(builder_module, name, lambda *words, answer=answer: answer)
    return EngineBuilder("tensorrt")


def plant(folder: Path, **changes: Any) -> None:
    """An engine under the name that a build of MODEL looks for, as anybody can compute it."""
    options = BuildOptions()
    parts: dict[str, Any] = {
        "onnx": sha256_bytes(MODEL),
        "engine": "tensorrt",
        "version": SIDECAR.version,
        "sm": H100.sm,
        "options": options.to_json(),
        "gpu": H100.name,
    }
    key = cache_key(parts)
    whole: dict[str, Any] = {"key": key, "onnx_sha256": parts["onnx"]}
    whole |= {"options": parts["options"]} | changes
    (folder / f"{key}.engine").write_bytes(DATA)
    replace(SIDECAR, **whole).write(folder / f"{key}.json")


def test_a_planted_engine_is_found_where_it_is_of_the_same_model(
    builder: EngineBuilder, tmp_path: Path
) -> None:
    plant(tmp_path)
    assert builder.build(MODEL, tmp_path).reused


@pytest.mark.parametrize(
    "changes",
    [
        {"key": "another"},
        {"onnx_sha256": "f" * 64},
        {"options": {}},
        {"engine": "tensorrt_rtx"},
        {"engine_sha256": "f" * 64},
    ],
)
def test_an_engine_of_something_else_is_built_again(
    changes: dict[str, Any], builder: EngineBuilder, tmp_path: Path
) -> None:
    plant(tmp_path, **changes)
    result = builder.build(MODEL, tmp_path)
    assert not result.reused
    assert result.path.read_bytes() == PLAN
    assert Sidecar.read(result.path.with_suffix(".json")).onnx_sha256 == sha256_bytes(MODEL)
    assert builder.build(MODEL, tmp_path).reused


def test_timings_that_cannot_be_written_cost_a_warning(
    builder: EngineBuilder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = builder.build(
        MODEL, tmp_path, BuildOptions(timing_cache=tmp_path / "nowhere" / "t.cache")
    )
    assert result.path.read_bytes() == PLAN
    assert "timing cache" in caplog.text
    builder.build(b"model B", tmp_path, BuildOptions(timing_cache=tmp_path / "t.cache"))
    assert (tmp_path / "t.cache").read_bytes() == TIMINGS


@pytest.mark.skipif(os.name != "posix" or os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_nobody_may_write_to(builder: EngineBuilder, tmp_path: Path) -> None:
    plant(tmp_path)
    tmp_path.chmod(0o555)
    try:
        assert builder.build(MODEL, tmp_path).reused
    finally:
        tmp_path.chmod(0o755)


def test_a_found_engine_needs_no_lock(
    builder: EngineBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> Any:
        raise AssertionError("a read-only folder cannot be locked")

    plant(tmp_path)
    monkeypatch.setattr(builder_module, "build_lock", refuse)
    assert builder.build(MODEL, tmp_path).reused


def test_gpus_of_one_sm_have_engines_of_their_own(builder: EngineBuilder, tmp_path: Path) -> None:
    """TensorRT times its kernels on the GPU; a home may be shared by several."""

    def paths(gpu: Gpu) -> list[Path]:
        builder.probe = replace(builder.probe, gpu=gpu)
        levels: tuple[Hardware, ...] = ("none", "same_compute_capability")
        return [builder.build(MODEL, tmp_path, BuildOptions(hardware=h)).path for h in levels]

    first, other = paths(H100), paths(replace(H100, name="NVIDIA H200"))
    assert (first[0] == other[0], first[1] == other[1]) == (False, True)
    found = Probe("tensorrt", SIDECAR.version, H100, None, None)
    for path in (first[0], other[1]):
        Sidecar.read(path.with_suffix(".json")).read_engine(path, found)
    with pytest.raises(EngineError, match="timed on NVIDIA H200, and this is NVIDIA H100"):
        Sidecar.read(other[0].with_suffix(".json")).read_engine(other[0], found)


def test_no_engine_is_built_from_weights_that_no_hash_covers(
    builder: EngineBuilder, tmp_path: Path
) -> None:
    """TensorRT's parser looks for them from the working folder on."""
    external = onnx.TensorProto.EXTERNAL
    initializer = onnx.TensorProto(name="w", data_type=1, dims=[4], data_location=external)
    initializer.external_data.add(key="location", value="../weights")
    model = onnx.ModelProto(ir_version=10, graph=onnx.GraphProto(initializer=[initializer]))
    for action in (lambda data: builder.build(data, tmp_path), builder.layers):
        with pytest.raises(EngineError, match="keeps weights in other files"):
            action(model.SerializeToString())
    assert not list(tmp_path.iterdir())


def test_the_cache_is_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = user_cache("engines")
    assert folder == tmp_path / "cache/regcache-deploy/engines"
    asked: list[Path] = []
    monkeypatch.setattr(
        evaluated, "_open_tensorrt", lambda name, model, batches, cache: asked.append(cache)
    )
    evaluated.open_engine("tensorrt", tmp_path / "x.onnx", None, (1, 8))
    assert asked == [folder]
    if os.name == "posix":
        assert folder.stat().st_mode & 0o777 == 0o700
        folder.chmod(0o777)
        with pytest.raises(EngineError, match="others can write"):
            user_cache("engines")


def test_a_home_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(EngineError, match="XDG_CACHE_HOME"):
        user_cache("engines")
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(EngineError, match="XDG_CACHE_HOME"):
        user_cache("engines")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What sessions are asked for, of an ONNX Runtime that claims to have a GPU's providers."""
    found: list[Any] = []
    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]

    def session(source: Any, options: Any, providers: list[Any], enable_fallback: int) -> Any:
        assert not enable_fallback
        found.append(providers)
        first = providers[0]
        running = first if isinstance(first, str) else first[0]
        tensor = SimpleNamespace(name="image", shape=["b", 3, 4, 4], type="tensor(float)")
        features = SimpleNamespace(name="features", shape=["b", 2], type="tensor(float)")
        return SimpleNamespace(
            get_providers=lambda: [running],
            get_modelmeta=lambda: SimpleNamespace(custom_metadata_map={}),
            get_inputs=lambda: [tensor],
            get_outputs=lambda: [features],
        )

    runtime = SimpleNamespace(
        SessionOptions=lambda: SimpleNamespace(add_session_config_entry=lambda key, value: None),
        InferenceSession=session,
        get_available_providers=lambda: names,
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    monkeypatch.setattr(providers, "find_gpu", lambda device_id=0: (H100, ""))
    return found


def test_tensorrt_is_asked_for_int8_with_cuda_behind_it(asked: list[Any], tmp_path: Path) -> None:
    model = tmp_path / "x.onnx"
    model.write_bytes(b"x")
    open_session(model, provider="TensorrtExecutionProvider")
    providers.load_provider_engine(
        model, "tensorrt", device_id=1, fp16=True, engine_cache=tmp_path
    ).close()
    providers.load_provider_engine(model, "cuda", device_id=1).close()
    tensorrt, cuda = "TensorrtExecutionProvider", "CUDAExecutionProvider"
    assert asked[0] == [(tensorrt, {"trt_int8_enable": "True"}), cuda]
    assert asked[1] == [
        (
            tensorrt,
            {
                "trt_int8_enable": "True",
                "device_id": "1",
                "trt_fp16_enable": "True",
                "trt_engine_cache_enable": "True",
                "trt_engine_cache_path": str(tmp_path),
                "trt_engine_cache_prefix": sha256_bytes(b"x")[:16],
                "trt_timing_cache_enable": "True",
                "trt_timing_cache_path": str(tmp_path),
            },
        ),
        (cuda, {"device_id": "1"}),
    ]
    assert asked[2] == [(cuda, {"device_id": "1"})]


@pytest.mark.parametrize(
    ("provider", "option"),
    [("cpu", "device_id"), ("cuda", "fp16"), ("cuda", "engine_cache"), ("tensorrt_rtx", "fp16")],
)
def test_an_option_that_would_be_ignored_is_refused(
    provider: str, option: str, asked: list[Any], tmp_path: Path
) -> None:
    values: dict[str, Any] = {"device_id": 0, "fp16": True, "engine_cache": tmp_path}
    with pytest.raises(EngineError, match=option):
        providers.load_provider_engine(tmp_path / "x.onnx", provider, **{option: values[option]})


def test_openvino_refuses_what_it_would_ignore(tmp_path: Path) -> None:
    from regcache_engines import load_engine

    model = tmp_path / "x.onnx"
    with pytest.raises(EngineError, match="optimize"):
        load_engine(model, runtime="openvino", optimize=False)
    with pytest.raises(EngineError, match="provider"):
        load_engine(model, runtime="openvino", provider="CUDAExecutionProvider")
