"""From a bundle or an ONNX file to an engine of the runtime that was asked for."""

from __future__ import annotations

from pathlib import Path

from .bundle import MODEL, Bundle, unless_replaced
from .engine import Engine
from .errors import EngineError
from .onnxruntime_engine import OnnxRuntimeEngine
from .onnxruntime_session import CPU_PROVIDER
from .openvino_engine import OpenVINOEngine


def load_engine(
    source: Bundle | Path | str,
    *,
    threads: int | None = None,
    optimize: bool = True,
    provider: str = CPU_PROVIDER,
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
        EngineError: the runtime is unknown, missing, cannot run the model, or has no such option;
            or the bundle was replaced since it was opened.
    """
    if runtime not in ("onnxruntime", "openvino"):
        raise EngineError(f"unknown runtime '{runtime}'; take onnxruntime or openvino")
    if runtime == "openvino":
        ignored = [] if optimize else ["optimize=False"]
        ignored += [] if provider == CPU_PROVIDER else [f"provider={provider!r}"]
        if ignored:
            raise EngineError(f"OpenVINO has no {' and no '.join(ignored)}; leave it out")

    def load(source: Bundle | Path) -> Engine:
        model, sha256 = model_of(source)
        if runtime == "openvino":
            return OpenVINOEngine(model, threads=threads, sha256=sha256)
        return OnnxRuntimeEngine(
            model, threads=threads, optimize=optimize, provider=provider, sha256=sha256
        )

    if isinstance(source, Bundle) or not Path(source).is_dir():
        return load(source if isinstance(source, Bundle) else Path(source))
    return unless_replaced(Path(source), load)


def model_of(source: Bundle | Path | str) -> tuple[Path, str | None]:
    """The ONNX file of a bundle, which is opened, or the file itself; and what it must hash to.

    Raises:
        BundleError: the bundle is damaged.
    """
    if not isinstance(source, Bundle):
        path = Path(source)
        if not path.is_dir():
            return path, None
        source = Bundle.open(path)
    return source.model_path, source.manifest["files"][MODEL]["sha256"]
