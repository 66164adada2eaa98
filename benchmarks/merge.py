"""What merging tokens is worth on this CPU, beside the unmerged file and the peers.

    python benchmarks/merge.py --batches 1 8 --output benchmarks/results/merge-NAME.csv

All variants run in one process, one after another within a round, in an order that changes from
round to round. A ratio is the median over rounds of the ratio within a round, with its bootstrap
interval. Our files run in our engine on ONNX Runtime, and as written in OpenVINO; NNCF's INT8 and
the float file in OpenVINO as their users run them: with its own choice of precision, which is
bfloat16 for what is not quantized where the CPU has that. Random weights: speed only.

OpenVINO and NNCF need `pip install 'regcache-deploy[peers]'`; without them their rows are left out,
and the output says so.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from cpu_runs import engine_run, openvino_run, session
from merge_models import COUNTED, SCHEDULES, write_models

from regcache_deploy.bench.environment import describe_machine
from regcache_deploy.bench.memory import peak_memory
from regcache_deploy.bench.timing import Run, Samples, interleave

MODEL = "ViT-B-16"
CALLS, PAUSE = 3, 0.05

MERGED = [name for name in SCHEDULES if name != "none"]
OWN = ("tuned_onnxruntime", "portable_onnxruntime", "portable_openvino", "portable_openvino_auto")
PEERS = ("nncf_openvino_auto", "fp32_openvino_auto", "fp32_openvino")

BARS = {
    **{
        (f"{own}_none", f"{own}_{n}"): v
        for own in OWN[:3]
        for n, v in (("r8", 1.25), ("r8_falling", 1.40), ("r13", 1.55))
    },
    ("nncf_openvino_auto", "portable_openvino_auto_r8_falling"): 1.40,
    ("nncf_openvino_auto", "portable_openvino_auto_r13"): 1.55,
}
"""(over, under) -> the ratio of wall times that is aimed at."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", type=Path, default=Path("runs/merge"))
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=150, help="at most, for each part")
    parser.add_argument("--parts", nargs="+", default=["wall", "cpu", "memory"])
    parser.add_argument("--variants", nargs="+", default=[], help="only these (default: all)")
    parser.add_argument("--note", default="", help="e.g. that the machine was shared")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--prepare", action="store_true", help="write the models and stop")
    args = parser.parse_args()
    peers = _has_peers()
    write_models(args.models, args.model, peers)
    if args.prepare:
        return 0
    rows: list[list[Any]] = []
    for batch in args.batches:
        for part in ("wall", "cpu"):
            if part in args.parts:
                rows += _rows(part, batch, _time(part, batch, peers, args))
        if "memory" in args.parts:
            rows += _memory(batch, peers, args)
    _write(rows, args)
    return 0


def makers(folder: Path, threads: int, images: np.ndarray, peers: bool, stack: ExitStack) -> Any:
    """Variant -> how to make one call of it."""
    made: dict[str, Any] = {}
    for name in SCHEDULES:
        for form in ("tuned", "portable"):
            path = folder / f"{form}_{name}.onnx"
            made[f"{form}_onnxruntime_{name}"] = lambda path=path: engine_run(
                path, threads, images, stack
            )
        if peers:
            path = folder / f"portable_{name}.onnx"
            made[f"portable_openvino_{name}"] = lambda path=path: openvino_run(
                path, threads, images
            )
            made[f"portable_openvino_auto_{name}"] = lambda path=path: openvino_auto(
                path, threads, images
            )
    if peers:
        fp32, nncf = folder / "fp32.onnx", folder / "nncf.xml"
        made["nncf_openvino_auto"] = lambda: openvino_auto(nncf, threads, images)
        made["fp32_openvino_auto"] = lambda: openvino_auto(fp32, threads, images)
        made["fp32_openvino"] = lambda: openvino_run(fp32, threads, images)
    return made


def openvino_auto(path: Path, threads: int, images: np.ndarray) -> Run:
    """OpenVINO with its own choice of precision."""
    import openvino

    core = openvino.Core()
    model = core.read_model(str(path))
    model.reshape(list(images.shape))
    compiled = core.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": threads})
    request = compiled.create_infer_request()
    return lambda: request.infer([images])


def merges_run(path: Path, threads: int) -> Run:
    """The merges of one graph alone, on random tokens and keys of one image."""
    loaded, generator = session(path, threads), np.random.default_rng(0)
    feeds = {
        value.name: generator.standard_normal([1, *value.shape[1:]], dtype=np.float32)
        for value in loaded.get_inputs()
    }
    return lambda: loaded.run(None, feeds)


def _time(part: str, batch: int, peers: bool, args: argparse.Namespace) -> Samples:
    """Wall time with all threads, or the process's CPU time with one."""
    wall = part == "wall"
    threads = args.threads if wall else 1
    images = np.resize(np.load(args.models / "images.npy"), (batch, 3, 224, 224))
    with ExitStack() as stack:
        known = makers(args.models, threads, images.astype(np.float32), peers, stack)
        if not wall and batch == 1:
            for form in ("tuned", "portable"):
                path = args.models / f"{form}_merges.onnx"
                known[f"{form}_merges_alone"] = lambda path=path: merges_run(path, 1)
        unknown = sorted(set(args.variants) - set(known))
        if unknown:
            raise SystemExit(f"no variant {', '.join(unknown)}; take some of: {', '.join(known)}")
        runs = {n: make() for n, make in known.items() if not args.variants or n in args.variants}
        return interleave(
            runs,
            args.rounds,
            clock=time.perf_counter if wall else time.process_time,
            turn_ms=1e9,
            max_calls=CALLS if wall and batch == 1 else 1,
            pause=PAUSE,
            seconds=args.seconds,
        )


def _rows(part: str, batch: int, samples: Samples) -> list[list[Any]]:
    kind = "wall ms" if part == "wall" else "cpu ms (1 thread)"
    rows: list[list[Any]] = []
    for name in samples.milliseconds:
        calls = samples.calls(name)
        middle, least = samples.percentile(name, 50), min(calls)
        rows.append([kind, batch, name, "median", f"{middle:.2f}", f"{least:.2f}", len(calls)])
    pairs = [(f"{own}_none", f"{own}_{name}") for own in OWN for name in MERGED]
    pairs += [(peer, f"portable_openvino_auto_{name}") for peer in PEERS for name in SCHEDULES]
    pairs += [(peer, f"tuned_onnxruntime_{name}") for peer in PEERS for name in SCHEDULES]
    # the share of the merges: how long they take, over how long the graph takes
    pairs += [(f"{f}_merges_alone", f"{f}_onnxruntime_{COUNTED}") for f in ("tuned", "portable")]
    for over, under in pairs:
        if over in samples.milliseconds and under in samples.milliseconds:
            found = samples.ratio(over, under)
            interval = [f"{v:.4f}" for v in (found.value, found.low, found.high)]
            rows.append([f"ratio of {kind}", batch, over, under, *interval])
            if part == "wall" and (over, under) in BARS:
                rows[-1].append(f"aim {BARS[over, under]:.2f}")
    return rows


def _memory(batch: int, peers: bool, args: argparse.Namespace) -> list[list[Any]]:
    """Peak resident set of a process that loads one file and runs it twice."""
    rows = []
    for engine, form in (("onnxruntime", "tuned"), ("openvino", "portable")):
        if engine == "openvino" and not peers:
            continue
        for name in SCHEDULES:
            path = args.models / f"{form}_{name}.onnx"
            peak = peak_memory(engine, path, args.threads, batch, args.models / "cache")
            if peak is not None:
                values = [f"{peak.peak_mib:.1f}", f"{peak.imports_mib:.1f}"]
                rows.append(["peak MiB", batch, f"{form}_{engine}_{name}", "imports", *values])
    return rows


def _has_peers() -> bool:
    try:
        import nncf  # noqa: F401
        import openvino  # noqa: F401
    except ImportError:
        print("no openvino or nncf: their rows are left out", file=sys.stderr)
        return False
    return True


def _precision() -> str:
    """What OpenVINO computes floats in, where nobody tells it."""
    import openvino

    hint = openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT")
    return str(hint.get_type_name() if hasattr(hint, "get_type_name") else hint)


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
        "schedules": "; ".join(f"{name} = {text}" for name, text in SCHEDULES.items()),
        "note": args.note,
        "python": machine["python"],
    }
    if _has_peers():
        import nncf
        import openvino

        facts |= {
            "openvino": openvino.__version__,
            "openvino's own precision": _precision(),
            "nncf": nncf.__version__,
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
