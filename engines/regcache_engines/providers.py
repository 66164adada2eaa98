"""ONNX Runtime's execution providers for NVIDIA GPUs, each of which must really run.

ONNX Runtime lists a provider as available whether or not its libraries load, and takes the CPU
without a word where they do not. So the GPU is looked for first, and the session is asked
afterwards (`OnnxRuntimeEngine`).
"""

from __future__ import annotations

import importlib
from importlib import metadata
from pathlib import Path
from typing import Any

from .bundle import Bundle
from .engine import Engine
from .engine_base import BaseEngine
from .errors import EngineError
from .files import sha256_file
from .load import check_engine, load_engine, model_of
from .monitor import Monitor
from .onnxruntime_engine import OnnxRuntimeEngine
from .onnxruntime_session import NO, YES, import_onnxruntime, open_session
from .tensorrt.probe import find_gpu

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "tensorrt_rtx": "NvTensorRTRTXExecutionProvider",
}
"""Our names and ONNX Runtime's. CUDA has no INT8 kernels for Q/DQ graphs: it runs them in float."""

PLUGIN_DISTRIBUTIONS = ("onnxruntime-ep-nv-tensorrt-rtx-cu13", "onnxruntime-ep-nv-tensorrt-rtx")
PLUGIN_LIBRARY = "onnxruntime_providers_nv_tensorrt_rtx"


class PluginEngine(OnnxRuntimeEngine):
    """A model on a provider that comes as a plug-in library, here TensorRT-RTX."""

    def _open_session(self, threads: int | None, optimize: bool, provider: str) -> Any:
        onnxruntime = import_onnxruntime()
        if not hasattr(onnxruntime, "register_execution_provider_library"):
            raise EngineError("this ONNX Runtime takes no plug-in providers; install 1.23 or newer")
        known = {device.ep_name for device in onnxruntime.get_ep_devices()}
        if provider not in known:
            library = plugin_library()
            try:
                onnxruntime.register_execution_provider_library(provider, str(library))
            except Exception as error:  # onnxruntime's exceptions share no base class of their own
                raise EngineError(f"{library} does not load: {error}") from error
        devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == provider]
        if not devices:
            raise EngineError(f"{provider} supports no device of this machine")
        return open_session(
            self._file.source(),
            threads=threads,
            optimize=optimize,
            provider=provider,
            devices=devices[:1],
            name=self._path,
        )


def plugin_library() -> Path:
    """The TensorRT-RTX provider's library in an installed distribution.

    Its package is imported: only then TensorRT-RTX itself, which lies beside the library under
    another name than the library asks for, can be found by the loader.

    Raises:
        EngineError: not installed, or its package does not load.
    """
    for name in PLUGIN_DISTRIBUTIONS:
        try:
            files = metadata.distribution(name).files or []
        except metadata.PackageNotFoundError:
            continue
        for file in files:
            if PLUGIN_LIBRARY in file.name and file.suffix in (".so", ".dll"):
                try:
                    importlib.import_module(file.parts[0])
                except (ImportError, OSError) as error:
                    raise EngineError(f"{file.parts[0]} does not load: {error}") from error
                return Path(str(file.locate()))
    raise EngineError(
        f"ONNX Runtime's TensorRT-RTX provider is not installed; run: pip install "
        f"{PLUGIN_DISTRIBUTIONS[0]}"
    )


def load_provider_engine(
    source: Bundle | Path | str,
    provider: str,
    threads: int | None = None,
    *,
    device_id: int | None = None,
    fp16: bool | None = None,
    engine_cache: Path | None = None,
    monitor: Monitor | None = None,
    pieces: bool | None = None,
    mmap_folder: Path | None = None,
) -> Engine:
    """Load a bundle or an ONNX file on an execution provider.

    Args:
        source: an open bundle, a bundle's folder, or a `.onnx` file.
        provider: a key of `PROVIDERS`.
        threads: threads inside an operator of the CPU's part.
        device_id: which GPU; None takes the first.
        fp16: whether TensorRT may run float parts in float16; None means no.
        engine_cache: folder where TensorRT keeps its engine; None builds it at every start. It
            loads what it finds there: take a folder of your own.
        monitor: of the bundle, to be told the codes of its probes.
        pieces, mmap_folder: as `load_engine` takes them; the CPU's alone.

    Raises:
        BundleError: the bundle is damaged.
        EngineError: unknown provider, an option that it does not have, no GPU, or another provider
            would run.
    """
    if provider not in PROVIDERS:
        raise EngineError(f"unknown provider '{provider}'; take one of: {', '.join(PROVIDERS)}")
    taken = {
        "cpu": {"pieces", "mmap_folder"},
        "cuda": {"device_id"},
        "tensorrt": {"device_id", "fp16", "engine_cache"},
    }
    given = {
        "device_id": device_id,
        "fp16": fp16,
        "engine_cache": engine_cache,
        "pieces": pieces,
        "mmap_folder": mmap_folder,
    }
    for option, value in given.items():
        if value is not None and option not in taken.get(provider, ()):
            raise EngineError(f"{PROVIDERS[provider]} has no {option}; leave it out")
    if provider == "cpu":
        return load_engine(
            source, threads=threads, monitor=monitor, pieces=pieces, mmap_folder=mmap_folder
        )
    gpu, reason = find_gpu(device_id or 0)
    if gpu is None:
        raise EngineError(f"{PROVIDERS[provider]} needs an NVIDIA GPU: {reason}")
    if not isinstance(source, Bundle) and Path(source).is_dir():
        source = Bundle.open(Path(source))
    engine = _on_gpu(source, provider, threads, device_id, fp16, engine_cache, monitor)
    if isinstance(source, Bundle):
        try:
            check_engine(source, engine)
        except BaseException:
            engine.close()
            raise
    return engine


def _on_gpu(
    source: Bundle | Path | str,
    provider: str,
    threads: int | None,
    device_id: int | None,
    fp16: bool | None,
    engine_cache: Path | None,
    monitor: Monitor | None,
) -> BaseEngine:
    model, sha256 = model_of(source)
    if provider != "tensorrt_rtx":
        options = {} if device_id is None else {"device_id": str(device_id)}
        if provider == "tensorrt":
            options |= tensorrt_options(model, sha256, fp16, engine_cache)
        return OnnxRuntimeEngine(
            model,
            threads=threads,
            provider=PROVIDERS[provider],
            sha256=sha256,
            provider_options=options,
            monitor=monitor,
        )
    return PluginEngine(
        model, threads=threads, provider=PROVIDERS[provider], sha256=sha256, monitor=monitor
    )


def tensorrt_options(
    model: Path, sha256: str | None, fp16: bool | None, engine_cache: Path | None
) -> dict[str, str]:
    """Options of ONNX Runtime's TensorRT, those that libregcache gives, too (`providers.cpp`).

    Raises:
        EngineError: the model cannot be read.
    """
    options = {"trt_fp16_enable": YES if fp16 else NO}
    if engine_cache is None:
        return options
    try:
        digest = sha256 or sha256_file(model)
    except OSError as error:
        raise EngineError(f"no model at {model}: {error}") from error
    return options | {
        "trt_engine_cache_enable": YES,
        "trt_engine_cache_path": str(engine_cache),
        # ONNX Runtime names an engine by names of file and graph, which all bundles share
        "trt_engine_cache_prefix": digest[:16],
        "trt_timing_cache_enable": YES,
        "trt_timing_cache_path": str(engine_cache),
    }
