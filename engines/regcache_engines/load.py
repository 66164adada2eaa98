"""From a bundle or an ONNX file to an engine of the runtime that was asked for."""

from __future__ import annotations

from pathlib import Path

from .bundle import MODEL, Bundle, unless_replaced
from .engine import Engine
from .engine_base import BaseEngine
from .errors import BundleError, EngineError
from .manifest_graph import graph_ends
from .monitor import Monitor
from .onnxruntime_engine import OnnxRuntimeEngine
from .onnxruntime_session import CPU_PROVIDER
from .openvino_engine import OpenVINOEngine
from .preprocess_config import output_size


def load_engine(
    source: Bundle | Path | str,
    *,
    threads: int | None = None,
    optimize: bool = True,
    provider: str = CPU_PROVIDER,
    runtime: str = "onnxruntime",
    monitor: Monitor | None = None,
    pieces: bool | None = None,
    mmap_folder: Path | None = None,
) -> Engine:
    """Load a bundle, or a bare ONNX file, into a runtime.

    Args:
        source: an open bundle, a bundle's folder, or a path to a `.onnx` file.
        threads: threads inside an operator; None takes one per physical core.
        optimize: False runs the graph as written, for verification.
        provider: ONNX Runtime execution provider that must really run.
        runtime: `onnxruntime`, or `openvino` for the CPU (extra `openvino`).
        monitor: of the bundle, to be told the codes of its probes; ONNX Runtime only.
        pieces: a second copy of the model for larger batches: None loads it when one comes, True
            at once, False never; ONNX Runtime only.
        mmap_folder: a folder of your own, where the optimized model is kept and mapped into memory
            from: processes share the weights, and a call takes longer (docs/serving.md); ONNX
            Runtime on the CPU only.

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
        ignored += [] if monitor is None else ["monitor"]
        ignored += [] if pieces is None else ["pieces"]
        ignored += [] if mmap_folder is None else ["mmap_folder"]
        if ignored:
            raise EngineError(f"OpenVINO has no {' and no '.join(ignored)}; leave it out")

    def open_model(model: Path, sha256: str | None) -> BaseEngine:
        if runtime == "openvino":
            return OpenVINOEngine(model, threads=threads, sha256=sha256)
        return OnnxRuntimeEngine(
            model,
            threads=threads,
            optimize=optimize,
            provider=provider,
            sha256=sha256,
            monitor=monitor,
            pieces=pieces,
            mmap_folder=mmap_folder,
        )

    def open_bundle(bundle: Bundle) -> BaseEngine:
        engine = open_model(bundle.model_path, bundle.manifest["files"][MODEL]["sha256"])
        try:
            check_engine(bundle, engine)
        except BaseException:
            engine.close()
            raise
        return engine

    if isinstance(source, Bundle):
        return open_bundle(source)
    if not Path(source).is_dir():
        return open_model(Path(source), None)
    return unless_replaced(Path(source), lambda folder: open_bundle(Bundle.open(folder)))


def check_engine(bundle: Bundle, engine: BaseEngine) -> None:
    """Hold a loaded graph against what its bundle says of it, as the C++ library does.

    Raises:
        BundleError: the head has another length than the features.
        EngineError: other names, pixels or sizes than the manifest and the preprocessing say.
    """
    problems = []
    if engine.names is not None and engine.names != graph_ends(bundle.manifest):
        problems.append(f"input and output {engine.names}, not {graph_ends(bundle.manifest)}")
    bytes_in = bundle.manifest["graph"]["input"]["dtype"] == "uint8"
    if bytes_in is (engine.pixels is None):
        problems.append("an input of another type than the manifest says")
    if engine.image_size != output_size(bundle.preprocess):
        problems.append(
            f"an input of {engine.image_size} pixels, and its preprocessing gives "
            f"{output_size(bundle.preprocess)}"
        )
    probes = [probe["output"] for probe in bundle.manifest["graph"].get("probes") or []]
    if engine.codes is not None and (lacking := [p for p in probes if p not in engine.codes]):
        problems.append(f"no codes {', '.join(lacking)}, which its manifest promises")
    if problems:
        raise EngineError(f"{bundle.model_path} has {' and '.join(problems)}; export it again")
    if bundle.has_text_features and bundle.text_features.shape[1] != engine.output_dim:
        raise BundleError(
            f"the text features of {bundle.path} have {bundle.text_features.shape[1]} numbers and "
            f"the embeddings {engine.output_dim}; they come from different models"
        )


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
