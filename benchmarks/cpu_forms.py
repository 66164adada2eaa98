"""What each form of the quantized graph costs on this CPU, beside its peers and the floor.

    python benchmarks/cpu_forms.py --batches 1 8 --output benchmarks/results/cpu_forms-NAME.csv

All variants run in one process, one after another within a round, in an order that changes from
round to round. A ratio is the median over rounds of the ratio within a round. Random weights:
speed only. Peers need `pip install 'regcache-deploy[peers]'`; without it they are left out, and
the output says so.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from cpu_models import GRAPHS, MODEL, OURS, write_models, write_nncf

from regcache_deploy.bench.environment import describe_machine
from regcache_deploy.bench.timing import Run, Samples, interleave


def session(path: Path, threads: int, profile: str = "") -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def ort_run(path: Path, threads: int, images: np.ndarray) -> Run:
    loaded = session(path, threads)
    return lambda: loaded.run(None, {"image": images})


def piecewise_run(path: Path, threads: int, images: np.ndarray) -> Run:
    """One image after another in one session."""
    loaded = session(path, threads)
    parts = [images[i : i + 1] for i in range(len(images))]
    return lambda: [loaded.run(None, {"image": part}) for part in parts]


def floor_run(path: Path, threads: int) -> Run:
    loaded = session(path, threads)
    binding = loaded.io_binding()
    generator = np.random.default_rng(0)
    for value in loaded.get_inputs():
        data = generator.integers(0, 256, value.shape).astype(np.uint8)
        binding.bind_cpu_input(value.name, data)
    for value in loaded.get_outputs():
        binding.bind_output(value.name)
    return lambda: loaded.run_with_iobinding(binding)


def openvino_run(path: Path, threads: int, images: np.ndarray) -> Run:
    import openvino

    properties = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    core = openvino.Core()
    model = core.read_model(str(path))
    # a known shape, as ONNX Runtime learns it at its first run
    model.reshape(list(images.shape))
    request = core.compile_model(model, "CPU", properties).create_infer_request()
    return lambda: request.infer([images])


def wall_variants(folder: Path, threads: int, batch: int, peers: bool) -> dict[str, Run]:
    images = np.resize(np.load(folder / "images.npy"), (batch, 3, 224, 224)).astype(np.float32)
    runs = {
        f"{name}_{graph}": ort_run(folder / f"{name}_{graph}.onnx", threads, images)
        for name in OURS
        for graph in GRAPHS
    }
    runs["tuned_regcache_again"] = ort_run(folder / "tuned_regcache.onnx", threads, images)
    if batch > 1:
        runs["tuned_regcache_one_by_one"] = piecewise_run(
            folder / "tuned_regcache.onnx", threads, images
        )
    runs["fp32"] = ort_run(folder / "fp32.onnx", threads, images)
    runs["quantize_static"] = ort_run(folder / "quantize_static.onnx", threads, images)
    runs["floor"] = floor_run(folder / f"floor_b{batch}.onnx", threads)
    if peers:
        runs["nncf_openvino"] = openvino_run(folder / "nncf.xml", threads, images)
        runs["portable_plain_openvino"] = openvino_run(
            folder / "portable_plain.onnx", threads, images
        )
        runs["portable_regcache_openvino"] = openvino_run(
            folder / "portable_regcache.onnx", threads, images
        )
    return runs


def cpu_variants(folder: Path, batch: int, peers: bool) -> dict[str, Run]:
    """One thread each: with two, a waiting thread spins and counts as work.

    CPU time of one thread hardly depends on what else the machine does; wall time does.
    """
    runs = wall_variants(folder, 1, batch, peers)
    images = np.resize(np.load(folder / "images.npy"), (batch, 3, 224, 224)).astype(np.float32)
    for name in OURS:
        runs[f"{name}_plain_again"] = ort_run(folder / f"{name}_plain.onnx", 1, images)
    return runs


def operator_times(path: Path, threads: int, images: np.ndarray) -> dict[str, float]:
    """Share of ONNX Runtime's profiled time by operator type."""
    with tempfile.TemporaryDirectory() as scratch:
        loaded = session(path, threads, str(Path(scratch) / "profile"))
        for _ in range(5):
            loaded.run(None, {"image": images})
        events = json.loads(Path(loaded.end_profiling()).read_text())
    spent: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"]
    total = sum(spent.values())
    return {name: time / total for name, time in spent.most_common(12)}


RATIOS = (
    ("fp32", "tuned_regcache"),
    ("fp32", "tuned_plain"),
    ("nncf_openvino", "tuned_regcache"),
    ("nncf_openvino", "tuned_plain"),
    ("quantize_static", "tuned_regcache"),
    ("quantize_static", "tuned_plain"),
    ("quantize_static", "portable_regcache"),
    ("quantize_static", "portable_plain"),
    ("portable_regcache_openvino", "nncf_openvino"),
    ("portable_plain_openvino", "nncf_openvino"),
    ("tuned_regcache", "floor"),
    ("portable_regcache", "floor"),
    ("tuned_regcache_again", "tuned_regcache"),
    ("tuned_regcache_one_by_one", "tuned_regcache"),
)

CPU_RATIOS = RATIOS + tuple(
    (f"{name}_{kind}", f"{name}_plain") for name in OURS for kind in ("regcache", "plain_again")
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path("runs/cpu_forms"))
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--seconds", type=float, default=60, help="at most, for each part")
    parser.add_argument("--parts", nargs="+", default=["wall", "cpu", "operators"])
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--note", default="", help="e.g. that the machine was shared")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--prepare", action="store_true", help="write the models and stop")
    args = parser.parse_args()
    write_models(args.models, args.model)
    peers = not args.no_peers and _has_peers()
    if peers and not (args.models / "nncf.xml").exists():
        images = np.load(args.models / "images.npy")
        write_nncf(args.models / "fp32.onnx", args.models / "nncf.xml", images)
    if args.prepare:
        return 0
    rows: list[list[Any]] = []
    for batch in args.batches:
        if "wall" in args.parts:
            runs = wall_variants(args.models, args.threads, batch, peers)
            times = interleave(runs, args.rounds, seconds=args.seconds)
            rows += _rows("wall ms", batch, times, RATIOS)
            del runs
        if "cpu" in args.parts:
            runs = cpu_variants(args.models, batch, peers)
            times = interleave(runs, args.rounds, clock=time.process_time, seconds=args.seconds)
            rows += _rows("cpu ms (1 thread)", batch, times, CPU_RATIOS)
            del runs
        if "operators" in args.parts:
            images = np.zeros((batch, 3, 224, 224), np.float32)
            for name in ("tuned_regcache", "portable_regcache", "quantize_static"):
                shares = operator_times(args.models / f"{name}.onnx", args.threads, images)
                rows += [
                    ["operator share", batch, name, op, f"{v:.4f}"] for op, v in shares.items()
                ]
    _write(rows, args)
    return 0


def _rows(
    kind: str, batch: int, samples: Samples, pairs: tuple[tuple[str, str], ...]
) -> list[list[Any]]:
    rows: list[list[Any]] = []
    for name in samples.milliseconds:
        calls = samples.calls(name)
        middle, least = samples.percentile(name, 50), min(calls)
        rows.append([kind, batch, name, "median", f"{middle:.2f}", f"{least:.2f}", len(calls)])
    for over, under in pairs:
        if over in samples.milliseconds and under in samples.milliseconds:
            found = samples.ratio(over, under)
            interval = [f"{v:.4f}" for v in (found.value, found.low, found.high)]
            rows.append([f"ratio of {kind}", batch, over, under, *interval])
    return rows


def _has_peers() -> bool:
    try:
        import nncf  # noqa: F401
        import openvino  # noqa: F401
    except ImportError:
        print("no openvino or nncf: peers left out", file=sys.stderr)
        return False
    return True


def _write(rows: list[list[Any]], args: argparse.Namespace) -> None:
    import onnxruntime

    machine = describe_machine()
    facts = {
        "cpu": f"{machine['cpu']} ({' '.join(machine['cpu_flags']) or 'no VNNI'})",
        "cores": machine["cores"],
        "load": machine["load"],
        "threads": args.threads,
        "onnxruntime": onnxruntime.__version__,
        "model": f"{args.model}, random weights: speed only",
        "note": args.note,
        "python": machine["python"],
    }
    out = args.output.open("w", newline="") if args.output else sys.stdout
    writer = csv.writer(out, lineterminator="\n")
    for key, value in facts.items():
        writer.writerow(["environment", "", key, value])
    writer.writerow(["kind", "batch", "variant", "of", "value", "low_or_min", "high_or_n"])
    writer.writerows(rows)
    if args.output:
        out.close()


if __name__ == "__main__":
    sys.exit(main())
