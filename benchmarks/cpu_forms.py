"""What each form of the quantized graph costs on this CPU, beside its peers and the floor.

    python benchmarks/cpu_forms.py --batches 1 8 --output benchmarks/results/cpu_forms-NAME.csv

All variants run in one process, one after another within a round, in an order that changes from
round to round. A ratio is the median over rounds of the ratio within a round. Our files run in our
engine, which cuts a batch in pieces (`regcache_engines/pieces.py`), peers as their users run them;
`_pieces` gives peers the same pieces, `_whole` takes them from us. Random weights: speed only.
Both batches take about eleven minutes on two cores.

Peers need `pip install 'regcache-deploy[peers]'`; without it they are left out, and the output
says so.
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
from cpu_models import MODEL, OURS, write_models, write_nncf
from cpu_runs import PIECE, make_runs, operator_times

from regcache_deploy.bench.environment import describe_machine
from regcache_deploy.bench.timing import Samples, interleave

CALLS, PAUSE = 3, 0.05
"""Wall time of one image: so many calls in a row, behind a rest and one untimed call. Threads of
the variant before spin for some 20 ms when their work is done, and would take a core from it."""

RATIOS = (
    ("fp32", "tuned_regcache"),
    ("fp32", "tuned_plain"),
    ("nncf_openvino", "tuned_regcache"),
    ("nncf_openvino", "tuned_plain"),
    ("nncf_openvino_pieces", "tuned_regcache"),
    ("quantize_static", "tuned_regcache"),
    ("quantize_static", "tuned_plain"),
    ("quantize_static", "portable_regcache"),
    ("quantize_static", "portable_plain"),
    ("quantize_static_pieces", "tuned_regcache"),
    ("quantize_static_pieces", "portable_regcache"),
    ("portable_regcache_openvino", "nncf_openvino"),
    ("portable_plain_openvino", "nncf_openvino"),
    ("tuned_regcache", "floor"),
    ("portable_regcache", "floor"),
    ("tuned_wide_regcache", "tuned_regcache"),
    ("tuned_regcache_whole", "tuned_regcache"),
    *((f"{name}_{kind}", f"{name}_plain") for name in OURS for kind in ("regcache", "plain_again")),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path("runs/cpu_forms"))
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=110, help="at most, for each wall part")
    parser.add_argument("--cpu-seconds", type=float, default=230, help="at most, for each CPU part")
    parser.add_argument("--variants", nargs="+", default=[], help="only these (default: all)")
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
        for part, kind in (("wall", "wall ms"), ("cpu", "cpu ms (1 thread)")):
            if part in args.parts:
                times = _time(part, batch, peers, args)
                rows += _rows(kind, batch, times, RATIOS)
        if "operators" in args.parts:
            for name in ("tuned_regcache", "portable_regcache", "quantize_static"):
                size = batch if name == "quantize_static" else min(batch, PIECE)
                images = np.zeros((size, 3, 224, 224), np.float32)
                shares = operator_times(args.models / f"{name}.onnx", 1, images)
                rows += [
                    ["operator share", batch, name, op, f"{v:.4f}"] for op, v in shares.items()
                ]
    _write(rows, args)
    return 0


def _time(part: str, batch: int, peers: bool, args: argparse.Namespace) -> Samples:
    """Wall time with all threads, or the process's CPU time with one.

    With two threads a waiting one spins and counts as work. CPU time of one thread depends less on
    what else the machine does.
    """
    wall = part == "wall"
    with ExitStack() as stack:
        threads = args.threads if wall else 1
        runs = make_runs(args.models, threads, batch, peers, args.variants, stack)
        return interleave(
            runs,
            args.rounds,
            clock=time.perf_counter if wall else time.process_time,
            turn_ms=1e9,
            max_calls=CALLS if wall and batch == 1 else 1,
            pause=PAUSE,
            seconds=args.seconds if wall else args.cpu_seconds,
        )


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
