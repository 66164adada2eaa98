"""The same encoder, images and machine through our files and through their alternatives.

    python benchmarks/peers.py --model demo --output benchmarks/results
    python benchmarks/peers.py --model ViT-B-16 --pretrained random:0 --baseline naive
    python benchmarks/peers.py --model ViT-B-16 --pretrained openai --data IMAGENET/val
    python benchmarks/peers.py --model demo --batches

One row a tool: accuracy against PyTorch FP32 on the same held-out images (top-1 where the encoder
has a text side and trained weights, else the cosine of the features) and against NNCF's file
(columns `nncf_...`), latency in turns (see
`regcache_deploy/bench/timing.py`), size, and minutes to make the file. Speed-ups are against ONNX
Runtime FP32, of pairs within a round. A tool that cannot run keeps an empty row with its reason.
What a tool leaves open (NNCF's SmoothQuant, our way under `auto`) is chosen on the same search
images by the same objective; the row's settings name what won.
Peers: `pip install '.[peers]'`; ModelOpt clashes with it and takes an environment of its own
(`--modelopt-python`).
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer_list import peers
from peer_tools import Peer, PeerError
from peer_work import Work

from regcache_deploy.bench.environment import (
    describe_machine,
    environment_columns,
    environment_name,
    gpu_columns,
    read_gpu,
)
from regcache_deploy.bench.results import write_rows
from regcache_deploy.bench.timing import Run, Samples, interleave
from regcache_deploy.evaluation import compare_paired
from regcache_deploy.evaluation.metrics import fidelity_metrics
from regcache_deploy.evaluation.objective import zero_shot_predictions
from regcache_deploy.search.statistics import bootstrap_means

SPEED_REFERENCE = "onnxruntime_fp32"
NNCF = "nncf"
EVALUATION_BATCH = 1
"""A tool that sets its ranges while it runs sets them for the whole batch, so that what it makes of
an image hangs on the others."""


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    torch.set_num_threads(args.threads)
    machine = describe_machine()
    with tempfile.TemporaryDirectory(prefix="regcache-peers-") as scratch:
        work = Work(
            args.model,
            args.pretrained,
            Path(scratch),
            args.baseline,
            args.calibration_images,
            args.images,
            args.threads,
            args.data,
            args.search_images,
        )
        rows = compare(work, [p for p in peers(args.modelopt_python) if wanted(p, args)], args)
    what = "peers" if args.batches else "peer_accuracy"
    model = re.sub(r"[^a-z0-9.]+", "-", args.model.lower())  # timm/NAME is no folder
    name = f"{what}-{model}-{environment_name(machine)}.csv"
    args.output.mkdir(parents=True, exist_ok=True)
    day = {"measured_at": time.strftime("%Y-%m-%d", time.gmtime())}
    columns = environment_columns(machine, describe_machine())
    write_rows(args.output / name, rows, columns | {"note": args.note} | day)
    print(args.output / name)
    return 0


def arguments(argv: list[str] | None) -> argparse.Namespace:
    import sys

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--pretrained", help="as in regcache export")
    parser.add_argument("--baseline", default="repqvit", help="our quantizer")
    parser.add_argument("--data", type=Path, help="folder of images (default: demo's canvases)")
    parser.add_argument("--calibration-images", type=int, default=64)
    parser.add_argument(
        "--search-images",
        type=int,
        default=512,
        help="images that choices are made on; random weights take the calibration images",
    )
    parser.add_argument("--images", type=int, default=1000, help="held-out images")
    parser.add_argument(
        "--batches",
        type=int,
        nargs="*",
        default=[1, 8, 32],
        help="to time; none on a busy machine, and the file is called peer_accuracy-...",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=60, help="at most, for each batch size")
    parser.add_argument("--only", nargs="+", default=[], help="names of tools")
    parser.add_argument("--modelopt-python", default=sys.executable)
    parser.add_argument("--note", default="", help="e.g. that the machine was shared")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args(argv)


def wanted(peer: Peer, args: argparse.Namespace) -> bool:
    always = ("torch_eager", SPEED_REFERENCE)
    return not args.only or peer.name in args.only or peer.name in always


def compare(work: Work, chosen: list[Peer], args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a peer, in their order."""
    rows: dict[str, dict[str, Any]] = {}
    files: dict[str, Path | None] = {}
    features: dict[str, np.ndarray] = {}
    for peer in chosen:
        rows[peer.name] = describe(work, peer)
        try:
            files[peer.name], seconds = make(work, peer)
            features[peer.name], opening = embed(work, peer, files[peer.name])
        except Exception as error:  # a foreign tool may raise anything
            if peer.distribution == "regcache-deploy" and not isinstance(error, PeerError):
                raise
            rows[peer.name] |= {"reason": reason_of(error), "tool": peer.tool(work)}
            files.pop(peer.name, None)
        else:
            seconds += opening if peer.name == "torch_compile" else 0
            rows[peer.name] |= {"minutes": round(seconds / 60, 3)} | size_of(files[peer.name])
            rows[peer.name]["tool"] = peer.tool(work)
            if note := peer.note(work):
                rows[peer.name]["settings"] += f"; {note}"
        print(f"{peer.title}: {rows[peer.name].get('reason') or 'made'}", flush=True)
    reference = features[chosen[0].name]
    for name, found in features.items():
        rows[name] |= accuracy(work, found, reference, first=name == chosen[0].name)
        if name != NNCF and NNCF in features:
            rows[name] |= paired(work, found, features[NNCF], prefix="nncf_")
    for batch in args.batches:
        for name, columns in latency(work, chosen, files, batch, args).items():
            rows[name] |= columns
    return [row | {"reason": row.get("reason", "")} for row in rows.values()]


def reason_of(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, PeerError) else f"{type(error).__name__}: {text}"


def describe(work: Work, peer: Peer) -> dict[str, Any]:
    return {
        "model": work.model_name,
        "pretrained": work.pretrained or "",
        "peer": peer.name,
        "title": peer.title,
        "tool": "",
        "bits": peer.bits,
        "baseline": work.baseline if peer.distribution == "regcache-deploy" else "",
        "settings": peer.settings,
        "calibration_images": work.calibration_images,
        "dataset": work.held_out.source,
        "infer_img_size": work.model.encoder.spec.image_size[0],
        "threads": work.threads,
        "caution": work.model.caution or "",
    }


def make(work: Work, peer: Peer) -> tuple[Path | None, float]:
    """The peer's file, and the seconds to make it and the float file that it starts from."""
    _ = work.calibration, work.float_model, work.module  # loaded once, for nobody's account
    began = time.monotonic()
    path = peer.make(work)
    spent = time.monotonic() - began
    if path is None:
        return None, 0.0
    if path == work.float_model:
        return path, work.seconds["fp32"]
    spent = work.seconds.setdefault(path.stem, spent)  # it may have been made for another row
    from_float = peer.distribution != "regcache-deploy"
    return path, spent + (work.seconds["fp32"] if from_float else 0.0)


def size_of(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    parts = [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]
    return {"file_mib": round(sum(part.stat().st_size for part in parts) / 2**20, 2)}


def embed(work: Work, peer: Peer, path: Path | None) -> tuple[np.ndarray, float]:
    """Features of the held-out images, and the seconds that opening took."""
    batches = [batch.numpy() for batch in work.held_out.batches(EVALUATION_BATCH)]
    buffer = np.array(batches[0])
    began = time.monotonic()
    run = peer.open(work, path, buffer)
    opening = time.monotonic() - began
    features = []
    for batch in batches:
        count = len(batch)
        buffer[:count] = batch  # the last one may be smaller; what is behind it is dropped
        features.append(np.array(run())[:count])
    return np.concatenate(features), opening


def accuracy(
    work: Work, features: np.ndarray, reference: np.ndarray, first: bool
) -> dict[str, Any]:
    """Top-1 and cosine with paired statistics, under clip_benchmark's names."""
    found, against = torch.from_numpy(features), torch.from_numpy(reference)
    columns: dict[str, Any] = {"n": len(features)}
    if (hits := correct(work, features)) is not None:
        columns["acc1"] = round(float(hits.mean()), 5)
        if not first:
            columns |= paired(work, features, reference, prefix="")
    if not first:
        metrics = fidelity_metrics(found, against)
        cosine = torch.nn.functional.cosine_similarity(found.double(), against.double(), dim=-1)
        low, high = np.percentile(bootstrap_means(cosine.numpy()[:, None], 0), [2.5, 97.5])
        columns |= {
            "mean_cosine": round(metrics["mean_cosine"], 6),
            "mean_cosine_low": round(float(low), 6),
            "mean_cosine_high": round(float(high), 6),
            "min_cosine": round(metrics["min_cosine"], 6),
        }
    return columns


def correct(work: Work, features: np.ndarray) -> np.ndarray | None:
    """1 where the head says the label, `[n]`; None without head or labels."""
    if work.head is None or work.held_out.labels is None:
        return None
    found = zero_shot_predictions(torch.from_numpy(features), work.head)
    return (found == work.held_out.labels).numpy().astype(int)


def paired(work: Work, features: np.ndarray, against: np.ndarray, prefix: str) -> dict[str, Any]:
    """Top-1 less that of other features of the same images, in points; nothing without labels."""
    hits, base = correct(work, features), correct(work, against)
    if hits is None or base is None:
        return {}
    pair = compare_paired(base, hits)
    columns = {
        "acc1_difference": round(pair.difference, 3),
        "acc1_low": round(pair.low, 3),
        "acc1_high": round(pair.high, 3),
        "lost": pair.lost,
        "won": pair.won,
        "p_value": f"{pair.p_value:.2g}",
    }
    return {prefix + name: value for name, value in columns.items()}


def latency(
    work: Work,
    chosen: list[Peer],
    files: dict[str, Path | None],
    batch: int,
    args: argparse.Namespace,
) -> dict[str, dict[str, Any]]:
    """Columns of one batch size for every peer that runs."""
    images = work.batch(batch)
    runs: dict[str, Run] = {}
    for peer in chosen:
        if peer.name in files:
            runs[peer.name] = peer.open(work, files[peer.name], images)
    samples = interleave(runs, args.rounds, seconds=args.seconds, turn_ms=30, pause=0.005)
    gpu = read_gpu()[0]  # at once: an idle GPU lowers its clocks
    print(f"batch {batch}: {len(samples.rounds(SPEED_REFERENCE))} rounds", flush=True)
    state = {f"b{batch}_{name}": value for name, value in gpu_columns(gpu).items()} if gpu else {}
    return {name: timing_columns(samples, name, batch) | state for name in runs}


def timing_columns(samples: Samples, name: str, batch: int) -> dict[str, Any]:
    middle = samples.percentile(name, 50)
    columns: dict[str, Any] = {
        f"b{batch}_infer_step_time": round(middle, 3),
        f"b{batch}_p90_ms": round(samples.percentile(name, 90), 3),
        f"b{batch}_infer_samples_per_sec": round(batch / middle * 1e3, 2),
        f"b{batch}_rounds": len(samples.rounds(name)),
    }
    if name != SPEED_REFERENCE:
        found = samples.ratio(SPEED_REFERENCE, name)
        columns |= {
            f"b{batch}_speedup": round(found.value, 3),
            f"b{batch}_speedup_low": round(found.low, 3),
            f"b{batch}_speedup_high": round(found.high, 3),
        }
    return columns


if __name__ == "__main__":
    raise SystemExit(main())
