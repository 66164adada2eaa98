"""ONNX Runtime's providers for NVIDIA GPUs: the one asked for runs, or it is an error."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from regcache_engines import providers
from regcache_engines.errors import EngineError
from regcache_engines.onnxruntime_engine import OnnxRuntimeEngine
from regcache_export.bundle import write_bundle
from regcache_export.targets import GraphOptions
from tests.engines.tensorrt_fakes import H100, SHAPE
from tests.tiny_plans import tiny_plan


def test_providers_need_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(providers, "find_gpu", lambda device_id=0: (None, "no driver"))
    for name in ("cuda", "tensorrt", "tensorrt_rtx"):
        with pytest.raises(EngineError, match="needs an NVIDIA GPU: no driver"):
            providers.load_provider_engine(tmp_path / "x.onnx", name)
    with pytest.raises(EngineError, match="unknown provider"):
        providers.load_provider_engine(tmp_path / "x.onnx", "rocm")


def test_the_plugin_must_really_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A registered plug-in whose session falls back to the CPU is an error."""
    model = tmp_path / "x.onnx"
    model.write_bytes(b"x")
    name = providers.PROVIDERS["tensorrt_rtx"]
    registered: list[str] = []
    running = ["CPUExecutionProvider"]

    def tensor(kind: str, shape: list[Any]) -> Any:
        return SimpleNamespace(name=kind, type="tensor(float)", shape=shape)

    session = SimpleNamespace(
        get_providers=lambda: running,
        get_modelmeta=lambda: SimpleNamespace(custom_metadata_map={}),
        get_inputs=lambda: [tensor("image", ["b", *SHAPE])],
        get_outputs=lambda: [tensor("features", ["b", 2])],
    )
    runtime = SimpleNamespace(
        SessionOptions=lambda: SimpleNamespace(
            add_provider_for_devices=lambda d, o: None, add_session_config_entry=lambda k, v: None
        ),
        get_ep_devices=lambda: [SimpleNamespace(ep_name=x) for x in registered],
        register_execution_provider_library=lambda label, path: registered.append(label),
        InferenceSession=lambda path, options, enable_fallback: session,
    )
    monkeypatch.setattr(providers, "find_gpu", lambda device_id=0: (H100, ""))
    monkeypatch.setattr(providers, "plugin_library", lambda: Path("lib.so"))
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    with pytest.raises(EngineError, match="fell back to CPUExecutionProvider"):
        providers.load_provider_engine(model, "tensorrt_rtx")
    running[0] = name
    engine = providers.load_provider_engine(model, "tensorrt_rtx")
    assert engine.image_size == (4, 4)
    assert registered == [name]


class EpFailError(Exception):
    """ONNX Runtime's own is made in its binary."""


def test_a_provider_that_fails_is_not_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By default, ONNX Runtime's `InferenceSession` prints why, and goes on on the CPU."""
    model = tmp_path / "x.onnx"
    model.write_bytes(b"x")

    class Session:
        """Reads a switch as the binding does: `True` or `False`, and nothing else."""

        def __init__(
            self, source: Any, options: Any, providers: list[Any], enable_fallback: int = 1
        ) -> None:
            self._fallback, self._running = enable_fallback, providers[0][0]
            switches = {k: v for k, v in providers[0][1].items() if k.endswith("_enable")}
            if any(value not in ("True", "False") for value in switches.values()):
                self._fail(RuntimeError(f"should be 'True' or 'False': {switches}"))

        def _fail(self, error: Exception) -> None:
            if not self._fallback:
                raise error
            self._running = "CPUExecutionProvider"

        def run(self, names: list[str], feed: Any) -> list[Any]:
            self._fail(EpFailError("the engine was built for another GPU"))
            return [np.zeros((1, 2), np.float32)]

        def get_providers(self) -> list[str]:
            return [self._running]

        def get_modelmeta(self) -> Any:
            return SimpleNamespace(custom_metadata_map={})

        def get_inputs(self) -> list[Any]:
            return [SimpleNamespace(name="image", type="tensor(float)", shape=["b", *SHAPE])]

        def get_outputs(self) -> list[Any]:
            return [SimpleNamespace(name="features", type="tensor(float)", shape=["b", 2])]

    runtime = SimpleNamespace(
        SessionOptions=lambda: SimpleNamespace(add_session_config_entry=lambda k, v: None),
        get_available_providers=lambda: list(providers.PROVIDERS.values()),
        InferenceSession=Session,
    )
    monkeypatch.setattr(providers, "find_gpu", lambda device_id=0: (H100, ""))
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    engine = providers.load_provider_engine(model, "tensorrt", fp16=True, engine_cache=tmp_path)
    with pytest.raises(EngineError, match="the engine was built for another GPU"):
        engine.infer(np.zeros((1, *SHAPE), np.float32))
    wrong = {"trt_fp16_enable": "1"}
    with pytest.raises(EngineError, match=r"cannot load .*should be 'True' or 'False'.*doctor"):
        OnnxRuntimeEngine(model, provider=providers.PROVIDERS["tensorrt"], provider_options=wrong)


class OnTheCpu(OnnxRuntimeEngine):
    """Any provider, as ONNX Runtime without kernels for it: the CPU runs the graph."""

    def _open_session(self, threads: int | None, optimize: bool, provider: str) -> Any:
        return super()._open_session(threads, optimize, "CPUExecutionProvider")


@pytest.mark.parametrize(
    ("provider", "better"),
    [
        ("CUDAExecutionProvider", "onnx"),
        ("TensorrtExecutionProvider", "tensorrt"),
        ("NvTensorRTRTXExecutionProvider", "tensorrt"),
    ],
)
def test_a_graph_for_the_cpu_is_refused(provider: str, better: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")

    def write(target: str, quantized: bool) -> Path:
        path, options = tmp_path / f"{target}-{quantized}.regcache", GraphOptions(target=target)
        return write_bundle(tiny_plan(quantized), path, options=options) / "model.onnx"

    for model in (write("onnx", True), write("onnxruntime", False)):
        assert OnTheCpu(model, provider=provider).output_dim == 20
    with pytest.raises(EngineError, match=f"leaves .* to the CPU; export .* --target {better}$"):
        OnTheCpu(write("onnxruntime", True), provider=provider)


def test_a_missing_plugin_names_its_package() -> None:
    if any(_installed(name) for name in providers.PLUGIN_DISTRIBUTIONS):
        pytest.skip("the plug-in is installed")
    with pytest.raises(EngineError, match="pip install onnxruntime-ep-nv-tensorrt-rtx"):
        providers.plugin_library()


def test_the_plugins_package_is_loaded_before_its_library(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The wheel has TensorRT-RTX under a name that only the package's own code makes findable."""
    name, package = providers.PLUGIN_DISTRIBUTIONS[0], "a_plugin_of_this_test"
    record = tmp_path / f"{name.replace('-', '_')}-0.5.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.5.0\n")
    library = f"{package}/lib{providers.PLUGIN_LIBRARY}.so"
    (record / "RECORD").write_text(f"{package}/__init__.py,,\n{library},,\n")
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(
        "(__import__('pathlib').Path(__file__).parent / 'made').touch()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert providers.plugin_library() == tmp_path / library
    assert (tmp_path / package / "made").is_file()
    monkeypatch.delitem(sys.modules, package)
    (tmp_path / package / "__init__.py").write_text("raise OSError('no such library')\n")
    with pytest.raises(EngineError, match="a_plugin_of_this_test does not load: no such library"):
        providers.plugin_library()


def _installed(name: str) -> bool:
    from importlib import metadata

    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
