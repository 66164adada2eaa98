"""From a bundle or an ONNX file to an engine of the runtime that was asked for."""

from __future__ import annotations

from pathlib import Path

from .bundle import Bundle
from .engine import Engine
from .errors import EngineError
from .onnxruntime_engine import OnnxRuntimeEngine
from .openvino_engine import OpenVINOEngine


def load_engine(
    source: Bundle | Path | str,
    *,
    threads: int | None = None,
    optimize: bool = True,
    provider: str = "CPUExecutionProvider",
    runtime: str = "onnxruntime",
) -> Engine:
    """Load a bundle, or a bare ONNX file, into a runtime.

    Args:
        source: an open bundle, a bundle's folder, or a path to a `.onnx` file.
        threads: threads inside an operator; None takes one per physical core.
        optimize: False runs the graph as written, for verification.
        provider: ONNX Runtime execution provider that must really run.
        runtime: `onnxruntime`, or `openvino` for the CPU (extra `openvino`).

    Raises:
        BundleError: the bundle is damaged.
        EngineError: the runtime is unknown, missing, or cannot run the model.
    """
    if runtime not in ("onnxruntime", "openvino"):
        raise EngineError(f"unknown runtime '{runtime}'; take onnxruntime or openvino")
    if not isinstance(source, Bundle):
        path = Path(source)
        source = Bundle.open(path) if path.is_dir() else path
    model = source.model_path if isinstance(source, Bundle) else source
    if runtime == "openvino":
        return OpenVINOEngine(model, threads=threads)
    return OnnxRuntimeEngine(model, threads=threads, optimize=optimize, provider=provider)
