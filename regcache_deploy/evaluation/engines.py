"""The runtimes that can be timed, under one name each."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from regcache_engines.bundle import MODEL, Bundle
from regcache_engines.engine import Engine
from regcache_engines.load import load_engine
from regcache_engines.user_cache import user_cache

from ..compat import is_installed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kind:
    """A runtime.

    Attributes:
        title: for people.
        distributions: what brings it; the first one that is installed gives the version.
    """

    title: str
    distributions: tuple[str, ...]


_ORT = ("onnxruntime", "onnxruntime-gpu")

ENGINES: dict[str, Kind] = {
    "onnxruntime": Kind("ONNX Runtime, CPU", _ORT),
    "openvino": Kind("OpenVINO, CPU", ("openvino",)),
    "cuda": Kind("ONNX Runtime, CUDA", ("onnxruntime-gpu", "onnxruntime")),
    "tensorrt_ep": Kind("ONNX Runtime, TensorRT", ("onnxruntime-gpu", "onnxruntime")),
    "tensorrt_rtx_ep": Kind("ONNX Runtime, TensorRT-RTX", _ORT),
    "tensorrt": Kind("TensorRT", ("tensorrt-cu13", "tensorrt")),
    "tensorrt_rtx": Kind("TensorRT-RTX", ("tensorrt-rtx-cu13",)),
}

ON_GPU = frozenset(ENGINES) - {"onnxruntime", "openvino"}

_PROVIDERS = {"cuda": "cuda", "tensorrt_ep": "tensorrt", "tensorrt_rtx_ep": "tensorrt_rtx"}


def engine_version(name: str) -> str:
    """Installed version of a runtime's distribution, or nothing."""
    for distribution in ENGINES[name].distributions:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return ""


def open_engine(
    name: str,
    model: Bundle | Path,
    threads: int | None,
    batches: Sequence[int],
    cache: Path | None = None,
) -> Engine:
    """Load an ONNX file into a runtime.

    Args:
        name: a key of `ENGINES`.
        model: an open bundle, or an ONNX file.
        threads: threads inside an operator, on the CPU.
        batches: batch sizes that will be asked for; the profile of a TensorRT engine.
        cache: folder for engines that have to be built; None takes the user's cache.

    A TensorRT engine in which a product did not become INT8 is measured all the same, with a
    warning that names the product: what is measured is what would run.

    Raises:
        BundleError: the file is no ONNX model.
        EngineError: the runtime is missing, has no GPU, or refuses the model.
    """
    if name in ("onnxruntime", "openvino"):
        return load_engine(model, threads=threads, runtime=name)
    if name in _PROVIDERS:
        from regcache_engines.providers import load_provider_engine

        return load_provider_engine(model, _PROVIDERS[name], threads=threads)
    return _open_tensorrt(name, model, batches, cache or user_cache("engines"))


def _open_tensorrt(name: str, model: Bundle | Path, batches: Sequence[int], cache: Path) -> Engine:
    from regcache_engines.tensorrt.build_options import BuildOptions
    from regcache_engines.tensorrt.builder import EngineBuilder
    from regcache_engines.tensorrt.engine import TensorRTEngine
    from regcache_engines.tensorrt.probe import EngineName, probe
    from regcache_engines.tensorrt.sidecar import Profile

    kind: EngineName = "tensorrt_rtx" if name == "tensorrt_rtx" else "tensorrt"
    probe(kind).require_run()
    sizes = sorted(batches)
    profile = Profile(sizes[0], sizes[len(sizes) // 2], sizes[-1])
    path = model.path if isinstance(model, Bundle) else model
    data = model.read(MODEL) if isinstance(model, Bundle) else model.read_bytes()
    cache.mkdir(parents=True, exist_ok=True)
    built = EngineBuilder(kind).build(
        data, cache, BuildOptions(profile=profile), _promise(path, data), strict=False
    )
    if broken := built.sidecar.broken_promises:
        node, found = next(iter(broken.items()))
        log.warning(
            "%s: the engine breaks the static check's promise for %d products, first %s: found %s; "
            "regcache build refuses it",
            path,
            len(broken),
            node,
            found,
        )
    return TensorRTEngine(built.path)


def _promise(path: Path, data: bytes) -> Mapping[str, str]:
    """What the static check says must become of the products; nothing for a float file."""
    if not is_installed("onnx"):
        log.warning("%s: without onnx it is not checked which products become INT8", path)
        return {}
    from regcache_export.checks import check_file

    return check_file(path, data).promise
