"""Runtimes that are missing, engines of something else, and inputs that do not fit."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from regcache_deploy.errors import ConfigError, EngineError, RegCacheError
from tests.attacks.fault import Act, Fault, Outcome, Place
from tests.attacks.watch import run_apart

MISSING = "import sys; sys.modules[{name!r}] = None; from regcache_deploy.cli.main import main; "


def without(name: str, words: Callable[[Place], list[str]]) -> Act:
    """A command where a module is not installed."""

    def act(place: Place) -> Outcome:
        code = MISSING.format(name=name) + "sys.exit(main(sys.argv[1:]))"
        return run_apart(place, words(place), 60, program=[sys.executable, "-c", code])

    return act


def timed(place: Place) -> list[str]:
    words = ["bench", str(place.bundle()), "--compare", "int8", "--engine", "onnxruntime"]
    return [*words, "--rounds", "1", "--batch", "1", "--no-memory"]


def engine(name: str) -> Callable[[Place], list[str]]:
    return lambda place: [
        *("bench", str(place.bundle()), "--engine", name, "--rounds", "1", "--batch", "1"),
        *("--compare", "int8", "--no-memory"),
    ]


def build(name: str, *more: str) -> Act:
    return lambda place: [
        *("build", str(place.bundle()), "--engine", name, "--output", str(place.out), *more)
    ]


def infer(make: Callable[[], Any]) -> Act:
    """The Python call with an input that does not fit: its error, as a command would end with."""

    def act(place: Place) -> Outcome:
        from regcache_engines import load_engine

        with load_engine(place.bundle(), threads=1) as loaded:
            try:
                loaded.infer(make())
            except RegCacheError as error:
                return Outcome(error.exit_code, err=f"regcache: error: {error}")
        return Outcome(0)

    return act


def closed(place: Place) -> Outcome:
    from regcache_engines import load_engine

    loaded = load_engine(place.bundle(), threads=1)
    loaded.close()
    try:
        loaded.infer(np.zeros((1, 3, 32, 24), np.float32))
    except RegCacheError as error:
        return Outcome(error.exit_code, err=f"regcache: error: {error}")
    return Outcome(0)


def triton(place: Place) -> list[str]:
    """A file of noise as an engine, for a model repository."""
    run = place.run()
    (run / "result.json").write_text("{}")
    (place.given / "x.engine").write_bytes(b"noise" * 100)
    words = ["report", str(run), "--triton", str(place.out), "--output", str(place.out / "x.html")]
    return [*words, "--engine", str(place.given / "x.engine"), "--no-layers"]


def nan() -> Any:
    return np.full((1, 3, 32, 24), np.nan, np.float32)


fault = partial(Fault, "engines", error=EngineError)

FAULTS = [
    fault("unknown", "a runtime that there is not", engine("tensorlite"), error=ConfigError),
    fault("no-gpu-cuda", "CUDA without a GPU", engine("cuda")),
    fault("no-gpu-tensorrt", "TensorRT without a GPU", engine("tensorrt")),
    fault("no-gpu-build", "an engine of TensorRT without a GPU", build("tensorrt")),
    fault("no-onnxruntime", "ONNX Runtime is not installed", without("onnxruntime", timed),
          quick=False),
    fault("no-torch", "torch is not installed", without("torch", lambda p: p.export()),
          error=ConfigError, quick=False),
    fault("no-openvino", "OpenVINO is not installed", without(
        "openvino", engine("openvino")), quick=False),
    fault("noise", "noise as an engine, for Triton", triton),
    fault("size", "images of another size", infer(lambda: np.zeros((1, 3, 99, 24), np.float32))),
    fault("layout", "images [B, H, W, 3]", infer(lambda: np.zeros((1, 32, 24, 3), np.float32))),
    fault("type", "images of uint8", infer(lambda: np.zeros((1, 3, 32, 24), np.uint8))),
    fault("none", "no images", infer(lambda: np.zeros((0, 3, 32, 24), np.float32))),
    fault("nan", "images of NaN", infer(nan)),
    fault("list", "a list", infer(lambda: [1, 2, 3])),
    fault("closed", "an engine that was closed", closed),
]  # fmt: skip
