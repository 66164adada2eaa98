"""Latency of the C++ runtime beside Python's ONNX Runtime: same bundle, same threads, interleaved.

    make cpp && python benchmarks/cpp_latency.py --output benchmarks/results/cpp_latency-NAME.csv

Without `--bundle` it writes two of ViT-B/16 with random weights (speed only): FP32, and W8A8 with
RegCache for the target `onnxruntime`. All variants run in this process and take turns, in an order
that changes from round to round; a ratio is the median over rounds of the ratio within a round.
`python again` is a second session of Python's: how far its ratio is from 1 is what this machine
can tell apart. `engine` is our engine in Python, with the second copy of the model that runs pieces
on threads of their own; `cpp pieces` is libregcache with the same.

`--parts memory` measures the peak memory of the program regcache_classify and of a Python process,
each alone.

Both run the same release of ONNX Runtime, from the wheel, which holds it twice: inside Python's
module, and as the shared library that the C++ runtime loads. `cpp` includes the normalization of
uint8 pixels and the check of the features; Python's side is `session.run` alone, on floats that
are ready.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from gpu_models import SPECS, middle_choice, random_plan
from PIL import Image

from regcache_deploy.bench.environment import describe_machine
from regcache_deploy.bench.memory import peak_memory
from regcache_deploy.bench.timing import Run, interleave
from regcache_engines import Bundle, load_engine
from regcache_export.bundle import write_bundle
from regcache_export.targets import GraphOptions

LIBRARY = Path(__file__).resolve().parent.parent / "build/cpp/libregcache.so"
MODEL = "ViT-B-16"
PREPROCESS = {"size": 224, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
PARTS = ("latency", "memory")
PAUSE = 0.02
"""Seconds before a turn: threads of the session before spin until then."""


class Params(ctypes.Structure):
    """`regcache_model_params`."""

    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("onnxruntime_library", ctypes.c_char_p),
        ("threads", ctypes.c_int32),
        ("provider", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("engine_cache", ctypes.c_char_p),
        ("fp16", ctypes.c_int32),
        ("max_pixels", ctypes.c_int64),
        ("saturation_warning", ctypes.c_double),
        ("warning", ctypes.c_void_p),
        ("warning_user_data", ctypes.c_void_p),
        ("head", ctypes.c_char_p),
        ("pieces", ctypes.c_int32),
    )


class Native:
    """The C++ runtime through ctypes."""

    def __init__(self, bundle: Path, threads: int, pieces: bool = False) -> None:
        self.library = ctypes.CDLL(str(LIBRARY))
        self.library.regcache_last_error.restype = ctypes.c_char_p
        runtime = LIBRARY.parent / "onnxruntime/libonnxruntime.so.1"
        params = Params()
        size = ctypes.c_size_t(ctypes.sizeof(Params))
        self.library.regcache_model_params_init(ctypes.byref(params), size)
        params.onnxruntime_library = str(runtime.resolve()).encode()
        params.threads, params.pieces = threads, int(pieces)
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
        """Pixels uint8 `[B, H, W, 3]` to features float32 `[B, E]`, in place."""
        self.check(
            self.library.regcache_embed(
                self.context,
                pixels.ctypes.data_as(ctypes.c_void_p),
                ctypes.c_size_t(len(pixels)),
                features.ctypes.data_as(ctypes.c_void_p),
            )
        )

    def close(self) -> None:
        """Free both, and with them the threads of the session."""
        self.library.regcache_context_free(self.context)
        self.library.regcache_model_free(self.model)


def python_run(bundle: Bundle, threads: int, floats: np.ndarray) -> Run:
    """A session of its own: `run` -> features."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(bundle.model_path), options, providers=["CPUExecutionProvider"]
    )
    graph = bundle.manifest["graph"]
    outputs, name = [graph["output"]["name"]], graph["input"]["name"]
    return lambda: session.run(outputs, {name: floats})[0]


def measure(path: Path, batch: int, threads: int, arguments: argparse.Namespace) -> list[list[Any]]:
    """CSV rows of one bundle."""
    bundle = Bundle.open(path)
    graph = bundle.manifest["graph"]
    height, width = graph["input"]["shape"][2:]
    shape = (batch, height, width, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    mean, std = (np.float32(bundle.preprocess[key]) for key in ("mean", "std"))
    floats = np.ascontiguousarray(
        ((pixels / np.float32(255) - mean) / std).transpose(0, 3, 1, 2), dtype=np.float32
    )
    features = np.empty((batch, graph["output"]["shape"][1]), np.float32)
    native, piecewise = Native(path, threads), Native(path, threads, pieces=True)
    engine = load_engine(bundle, threads=threads, pieces=True)
    runs: dict[str, Run] = {
        "python": python_run(bundle, threads, floats),
        "python again": python_run(bundle, threads, floats),
        "cpp": lambda: native.embed(pixels, features),
        "engine": lambda: engine.infer(floats),
        "cpp pieces": lambda: piecewise.embed(pixels, features),
    }
    samples = interleave(
        runs, arguments.rounds, seconds=arguments.seconds, turn_ms=1e9,
        max_calls=arguments.calls, pause=PAUSE,
    )  # fmt: skip
    wanted = runs["python"]()
    runs["cpp"]()
    norms = np.linalg.norm(wanted, axis=1) * np.linalg.norm(features, axis=1)
    cosine = float(((wanted * features).sum(1) / norms).min())
    for opened in (native, piecewise, engine):
        opened.close()
    case = [path.stem, batch, threads]
    rows = [
        ["ms", *case, name, f"{samples.percentile(name, 50):.2f}", f"{min(calls):.2f}", len(calls)]
        for name in runs
        for calls in [samples.calls(name)]
    ]
    pairs = [("cpp", "python"), ("python again", "python"), ("engine", "python")]
    for name, other in [*pairs, ("cpp pieces", "engine")]:
        found = samples.ratio(name, other)
        values = [f"{value:.4f}" for value in (found.value, found.low, found.high)]
        rows.append([f"ratio to {other}", *case, name, *values])
    rows.append(["lowest cosine", *case, "cpp", f"{cosine:.7f}", "", batch])
    return rows


def memory(path: Path, batch: int, threads: int) -> list[list[Any]]:
    """CSV rows: the largest resident set of a process of its own, by language."""
    program = LIBRARY.parent / "regcache_classify"
    with tempfile.NamedTemporaryFile(suffix=".png") as image:
        Image.new("RGB", (500, 375), (90, 120, 40)).save(image.name)
        words = [program, "--json", "--bench", 3, "--batch", batch, "--threads", threads]
        done = subprocess.run(
            [*map(str, words), path, image.name], capture_output=True, text=True, check=True
        )
    native = json.loads(done.stdout)["bench"]["peak_memory_mib"]
    with tempfile.TemporaryDirectory() as cache:
        python = peak_memory("onnxruntime", path / "model.onnx", threads, batch, Path(cache))
    case = ["peak MiB", path.stem, batch, threads]
    found = f"{python.peak_mib:.0f}" if python else "unknown"
    return [[*case, "cpp", native, "", 1], [*case, "python", found, "", 1]]


def write_bundles(folder: Path, model: str) -> list[Path]:
    """FP32, and W8A8 with RegCache. Random weights, no calibration."""
    spec = SPECS[model]
    fp32, w8a8 = (folder / f"{model}-{form}.regcache" for form in ("fp32", "w8a8"))
    options = GraphOptions(target="onnxruntime")
    # "fp16" is gpu_models' word for a plan that quantizes nothing; this target computes in float32
    plans = {
        fp32: random_plan(spec, "fp16"),
        w8a8: random_plan(spec, "int8_linears", middle_choice(spec)),
    }
    for path, plan in plans.items():
        head = np.random.default_rng(0).standard_normal((1000, spec.output_dim), dtype=np.float32)
        head /= np.linalg.norm(head, axis=1, keepdims=True)
        labels = tuple(map(str, range(len(head))))
        whole = replace(plan, preprocess=PREPROCESS, text_features=head, labels=labels)
        write_bundle(whole, path, options=options)
    return [fp32, w8a8]


def write(rows: list[list[Any]], arguments: argparse.Namespace) -> None:
    machine = describe_machine()
    facts = {
        "cpu": f"{machine['cpu']} ({' '.join(machine['cpu_flags']) or 'no VNNI'})",
        "cores": machine["cores"],
        "load": machine["load"],
        "onnxruntime": onnxruntime.__version__,
        "model": "from --bundle" if arguments.bundle else f"{MODEL}, random weights: speed only",
        "note": arguments.note,
        "python": machine["python"],
    }
    out = arguments.output.open("w", newline="") if arguments.output else sys.stdout
    writer = csv.writer(out, lineterminator="\n")
    for key, value in facts.items():
        writer.writerow(["environment", "", "", "", key, value])
    writer.writerow("kind model batch threads variant value low_or_min high_or_n".split())
    writer.writerows(rows)
    if arguments.output:
        out.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, nargs="+", default=[])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--calls", type=int, default=3, help="timed calls of a turn")
    parser.add_argument("--seconds", type=float, default=45, help="at most, for each case")
    parser.add_argument("--note", default="", help="e.g. that the machine was shared")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rows: list[list[Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for path in arguments.bundle or write_bundles(Path(scratch), MODEL):
            for batch in arguments.batches:
                for threads in arguments.threads:
                    if "latency" in arguments.parts:
                        rows += measure(path, batch, threads, arguments)
                    if "memory" in arguments.parts:
                        rows += memory(path, batch, threads)
    write(rows, arguments)


if __name__ == "__main__":
    main()
