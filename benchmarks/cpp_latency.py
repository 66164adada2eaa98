"""Latency of the C++ runtime beside Python's ONNX Runtime: same bundle, same threads, interleaved.

    make cpp && python benchmarks/cpp_latency.py BUNDLE [--runs 200] [--threads 1] [--batch 1]

Both load the same shared library in this process, and take turns run by run, so that what else the
machine does meets both alike. The C++ side includes the normalization of uint8 pixels; the Python
side is `session.run` alone, on floats that are ready. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from pathlib import Path

import numpy as np
import onnxruntime

from regcache_engines import Bundle

LIBRARY = Path(__file__).resolve().parent.parent / "build/cpp/libregcache.so"


class Params(ctypes.Structure):
    """`regcache_model_params`, as far as it is used; struct_size says how far."""

    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("onnxruntime_library", ctypes.c_char_p),
        ("threads", ctypes.c_int32),
        ("provider", ctypes.c_int32),
    )


class Native:
    """The C++ runtime through ctypes."""

    def __init__(self, bundle: Path, threads: int) -> None:
        self.library = ctypes.CDLL(str(LIBRARY))
        self.library.regcache_last_error.restype = ctypes.c_char_p
        runtime = LIBRARY.parent / "onnxruntime/libonnxruntime.so.1"
        params = Params(ctypes.sizeof(Params), str(runtime.resolve()).encode(), threads, 0)
        self.model, self.context = ctypes.c_void_p(), ctypes.c_void_p()
        model = ctypes.byref(self.model)
        self.check(
            self.library.regcache_model_open(str(bundle).encode(), ctypes.byref(params), model)
        )
        self.check(self.library.regcache_context_create(self.model, ctypes.byref(self.context)))

    def check(self, status: int) -> None:
        if status:
            raise RuntimeError(self.library.regcache_last_error().decode())

    def embed(self, pixels: np.ndarray, features: np.ndarray) -> None:
        self.check(
            self.library.regcache_embed(
                self.context,
                pixels.ctypes.data_as(ctypes.c_void_p),
                ctypes.c_size_t(len(pixels)),
                features.ctypes.data_as(ctypes.c_void_p),
            )
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    arguments = parser.parse_args()

    bundle = Bundle.open(arguments.bundle)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = arguments.threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(bundle.model_path), options, providers=["CPUExecutionProvider"]
    )
    contract = bundle.manifest["graph"]
    _, _, height, width = contract["input"]["shape"]
    dim = contract["output"]["shape"][1]
    native = Native(arguments.bundle, arguments.threads)

    shape = (arguments.batch, height, width, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    mean, std = (np.float32(bundle.preprocess[key]) for key in ("mean", "std"))
    floats = np.ascontiguousarray(
        ((pixels / np.float32(255) - mean) / std).transpose(0, 3, 1, 2), dtype=np.float32
    )
    features = np.empty((arguments.batch, dim), np.float32)
    times: dict[str, list[float]] = {"python": [], "cpp": []}
    for _ in range(arguments.runs + 5):
        start = time.perf_counter()
        (wanted,) = session.run([contract["output"]["name"]], {contract["input"]["name"]: floats})
        middle = time.perf_counter()
        native.embed(pixels, features)
        times["python"].append(middle - start)
        times["cpp"].append(time.perf_counter() - middle)
    norms = np.linalg.norm(wanted, axis=1) * np.linalg.norm(features, axis=1)
    report = {
        "threads": arguments.threads,
        "batch": arguments.batch,
        "runs": arguments.runs,
        "min_cosine": float(((wanted * features).sum(1) / norms).min()),
    }
    for name, values in times.items():
        milliseconds = 1000 * np.asarray(values[5:])
        report[f"{name}_p50_ms"] = round(float(np.median(milliseconds)), 3)
        report[f"{name}_p10_ms"] = round(float(np.percentile(milliseconds, 10)), 3)
    ratios = np.asarray(times["cpp"][5:]) / np.asarray(times["python"][5:])
    report["cpp_over_python_median_of_pairs"] = round(float(np.median(ratios)), 4)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
