"""Peak memory of `regcache calibrate` by the number of images: it must not grow.

    python benchmarks/calibration_memory.py --images 64 4096

Each number runs `--repeats` times in a process of its own, and the median counts. The encoder is
the embedded demo (synthetic, planted sinks), the data one folder of PNG files of random pixels.
`growth` is the peak over that of the first number.
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
from regcache_deploy.planning import make_plan
from regcache_deploy.quantization import make_baseline

FIELDS = ("observer", "images", "peak_mib", "growth", "observer_kib")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[64, 4096])
    parser.add_argument("--observers", nargs="+", default=["minmax", "percentile", "mse"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--csv", type=Path, help="write the table here, too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _make_plan(folder / "plan")
        _make_images(folder / "images", max(args.images))
        rows = [
            row
            for observer in args.observers
            for row in _measure(folder, observer, args.images, args.repeats)
        ]
    writers = [csv.writer(sys.stdout)]
    file = args.csv.open("w", newline="") if args.csv else None
    if file:
        writers.append(csv.writer(file, lineterminator="\n"))
    for writer in writers:
        writer.writerow(FIELDS)
        writer.writerows(rows)
    if file:
        file.close()


def _measure(
    folder: Path, observer: str, counts: list[int], repeats: int
) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    first = 0.0
    for count in counts:
        runs = [_run(folder, observer, count) for _ in range(repeats)]
        peak = statistics.median(run["peak_memory_bytes"] for run in runs) / 2**20
        first = first or peak
        kib = runs[0]["observer_bytes"] / 1024
        rows.append((observer, count, f"{peak:.1f}", f"{peak / first:.4f}", f"{kib:.0f}"))
    return rows


def _run(folder: Path, observer: str, count: int) -> dict[str, Any]:
    words = [str(folder / "plan"), "--data", str(folder / "images"), "--images", str(count)]
    words += ["--observer", observer, "--output", str(folder / f"{observer}-{count}")]
    # 64 images are 8 batches, enough for the allocator's pools to settle
    words += ["--batch-size", "8", "--threads", "1", "--workers", "1", "--json", "--quiet"]
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
def _make_plan(folder: Path) -> None:
    demo = load_model("demo")
    height, width = demo.encoder.spec.image_size
    pixels = torch.rand(16, 3, height, width, generator=torch.Generator().manual_seed(0))
    tokens = demo.encoder.embed(pixels)
    calibration = make_baseline("naive").calibrate(demo.encoder, tokens)
    plan = make_plan(
        calibration, preprocess=demo.preprocess, provenance={"model": "demo", "baseline": "naive"}
    )
    plan.save(folder)


def _make_images(folder: Path, count: int) -> None:
    generator = np.random.default_rng(0)
    folder.mkdir()
    for index in range(count):
        pixels = generator.integers(0, 256, (96, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:05d}.png", compress_level=0)


if __name__ == "__main__":
    main()
