"""What a GPU machine can do for this project, answered in one go, as JSON.

    python benchmarks/gpu_probe.py

GPU and driver; which of tensorrt, tensorrt_rtx, onnxruntime-gpu, cuda.bindings, pycuda and torch
work; and, where an engine runs, one tiny engine with Q/DQ: built, validated, run, and compared
with ONNX Runtime on the CPU. Weights are random. Without a GPU it ends with exit code 7 and one
line.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gpu_models import TENSORRT, random_bundle, small_spec

from regcache_engines.errors import EngineError, RegCacheError
from regcache_engines.load import load_engine
from regcache_engines.providers import PROVIDERS, load_provider_engine
from regcache_engines.tensorrt.builder import EngineBuilder
from regcache_engines.tensorrt.device import DEVICES, open_device
from regcache_engines.tensorrt.engine import TensorRTEngine
from regcache_engines.tensorrt.probe import ENGINES, EngineName, find_gpu, probe
from regcache_export.checks import check_file


def main() -> int:
    """Print the findings. Returns 0, or EngineError's code without a GPU."""
    gpu, reason = find_gpu()
    findings: dict[str, Any] = {
        "gpu": asdict(gpu) if gpu else None,
        "engines": {name: asdict(probe(name)) for name in ENGINES},
        "devices": {name: attempt(partial(round_trip, name)) for name in DEVICES},
    }
    with tempfile.TemporaryDirectory(prefix="regcache-probe-") as folder:
        bundle = random_bundle(small_spec(), Path(folder) / "tiny.regcache", TENSORRT)
        images = np.random.default_rng(0).standard_normal((5, 3, 224, 224), dtype=np.float32)
        with load_engine(bundle) as cpu:
            expected = cpu.infer(images)
        findings["builds"] = {
            name: attempt(partial(build_and_run, name, bundle, images, expected))
            for name in ENGINES
        }
        findings["providers"] = {
            name: attempt(partial(run_provider, name, bundle, images, expected))
            for name in PROVIDERS
            if name != "cpu"
        }
    print(json.dumps(findings, indent=1))
    if gpu is None:
        print(f"gpu_probe: no GPU here: {reason}", file=sys.stderr)
        return EngineError.exit_code
    return 0


def attempt(action: Callable[[], Any]) -> dict[str, Any]:
    """The result, or the one line why not."""
    try:
        return {"ok": True, "result": action()}
    except RegCacheError as error:
        return {"ok": False, "why": str(error)}
    except Exception as error:  # a library's own: the other answers are wanted all the same
        return {"ok": False, "why": f"{type(error).__name__}: {error}"}


def round_trip(name: str) -> str:
    """The library's name, once bytes have come back from the GPU as they went there."""
    device = open_device(name)
    try:
        with device.current():
            up, down, memory = device.pinned(256), device.pinned(256), device.allocate(256)
            stream = device.stream()
            up.array[:], down.array[:] = np.arange(256), 0
            device.copy(memory, up, 256, stream)
            device.copy(down, memory, 256, stream)
            device.synchronize(stream)
            if not np.array_equal(up.array, down.array):
                raise EngineError(f"{name} gives back other bytes than it got")
    finally:
        with device.current():
            device.release()
    return device.name


def build_and_run(
    name: EngineName, bundle: Path, images: np.ndarray, expected: np.ndarray
) -> dict[str, Any]:
    """Build; and run, where there is a GPU."""
    model = bundle / "model.onnx"
    built = EngineBuilder(name).build(
        model.read_bytes(), bundle.parent / name, promise=check_file(model).promise
    )
    found: dict[str, Any] = {"layers": built.sidecar.layers, "bytes": built.sidecar.engine_bytes}
    refused = probe(name).run_refused
    if refused:
        return found | {"not_run": refused}
    with TensorRTEngine(built.path) as engine:
        return found | {"cosine": cosine(engine.infer(images), expected)}


def run_provider(
    name: str, bundle: Path, images: np.ndarray, expected: np.ndarray
) -> dict[str, float]:
    with load_provider_engine(bundle, name) as engine:
        return {"cosine": cosine(engine.infer(images), expected)}


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The least over images `[B, E]`."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(1) / norms).min())


if __name__ == "__main__":
    sys.exit(main())
