"""Peak memory of `regcache calibrate` by the number of images: it must not grow.

    python benchmarks/calibration_memory.py --images 64 4096 --batch-size 32

Each number runs `--repeats` times in a process of its own, and the median counts. The encoder is
the embedded demo (synthetic, planted sinks), the data one folder of PNG files of random pixels.
`growth` is the peak over that of the first number. A method is an observer of `naive`, or `ptq4vit`
or `repqvit`, which search on a sample of 64 images whatever their number.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from regcache_deploy.encoders.load import load_model
from regcache_deploy.quantization.baselines import make_baseline
from regcache_deploy.quantization.plan import make_plan
from regcache_deploy.quantization.settings import OBSERVER_NAMES

FIELDS = ("method", "batch", "images", "peak_mib", "growth", "observer_kib")
METHODS = ("minmax", "percentile", "mse", "ptq4vit", "repqvit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[64, 4096])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--csv", type=Path, help="write the table here, too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _make_images(folder / "images", max(args.images))
        rows = [row for method in args.methods for row in _measure(folder, method, args)]
    writers = [csv.writer(sys.stdout)]
    file = args.csv.open("w", newline="") if args.csv else None
    if file:
        writers.append(csv.writer(file, lineterminator="\n"))
    for writer in writers:
        writer.writerow(FIELDS)
        writer.writerows(rows)
    if file:
        file.close()


def _measure(folder: Path, method: str, args: argparse.Namespace) -> list[tuple[object, ...]]:
    _make_plan(folder / method, method)
    rows: list[tuple[object, ...]] = []
    first = 0.0
    for count in args.images:
        runs = [_run(folder, method, count, args.batch_size) for _ in range(args.repeats)]
        peak = statistics.median(run["peak_memory_bytes"] for run in runs) / 2**20
        first = first or peak
        kib = runs[0]["observer_bytes"] / 1024
        growth = f"{peak / first:.4f}"
        rows.append((method, args.batch_size, count, f"{peak:.1f}", growth, f"{kib:.0f}"))
    return rows


def _run(folder: Path, method: str, count: int, batch_size: int) -> dict[str, Any]:
    words = [str(folder / method), "--data", str(folder / "images"), "--images", str(count)]
    words += ["--output", str(folder / f"{method}-{count}"), "--batch-size", str(batch_size)]
    if method in OBSERVER_NAMES:
        words += ["--observer", method]
    words += ["--threads", "1", "--decoders", "1", "--json", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "regcache_deploy.cli.main", "calibrate", *words],
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    if found["images"] != count:
        raise SystemExit(f"{found['images']} images came through, not {count}")
    return found


@torch.no_grad()
def _make_plan(folder: Path, method: str) -> None:
    demo = load_model("demo")
    height, width = demo.encoder.spec.image_size
    pixels = torch.rand(16, 3, height, width, generator=torch.Generator().manual_seed(0))
    tokens = demo.encoder.embed(pixels)
    name = "naive" if method in OBSERVER_NAMES else method
    calibration = make_baseline(name).fast().calibrate(demo.encoder, tokens)
    provenance = {"model": "demo", "baseline": name}
    make_plan(calibration, preprocess=demo.preprocess, provenance=provenance).save(folder)


def _make_images(folder: Path, count: int) -> None:
    generator = np.random.default_rng(0)
    folder.mkdir()
    for index in range(count):
        pixels = generator.integers(0, 256, (96, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:05d}.png", compress_level=0)


if __name__ == "__main__":
    main()
