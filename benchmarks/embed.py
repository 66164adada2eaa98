"""`regcache embed` beside its own parts, and beside the same encoder in PyTorch FP32.

    python benchmarks/embed.py --data PHOTOGRAPHS --output benchmarks/results/embed-CPU.csv

The photographs are repeated to `--images` in a list of files. Measured one after the other, each
with all cores: decoding alone, the engine alone on pixels that are there, the command, and PyTorch
fed by the same decoders. Random weights: speed only. Peak memory is that of the command's own
process at a quarter of the images and at all of them.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from regcache_deploy.data.decoders import Decoders
from regcache_deploy.data.parts import Picture, open_collection
from regcache_deploy.encoders.load import load_model
from regcache_deploy.evaluation.engines import open_engine
from regcache_deploy.quantization.baselines import make_baseline
from regcache_deploy.quantization.plan import make_plan
from regcache_deploy.work.count import peak_memory
from regcache_deploy.work.threads import settle_threads
from regcache_engines.bundle import Bundle
from regcache_engines.preprocess import Pixels, Preprocess
from regcache_export.bundle import write_bundle
from regcache_export.targets import GraphOptions

COLUMNS = ("model", "what", "images", "images_per_second", "of_the_engine", "peak_mib", "cpu")
CALIBRATION = 8


def make_bundle(encoder: Any, preprocess: dict[str, Any], pixels: Pixels, folder: Path) -> Path:
    """The tuned form of `naive` W8A8; which ranges it has does not change its speed."""
    images = torch.from_numpy(Preprocess(preprocess).normalized(pixels))
    with torch.no_grad():
        calibration = make_baseline("naive").calibrate(encoder, encoder.embed(images))
    plan = make_plan(calibration, preprocess=preprocess)
    options = GraphOptions(target="onnxruntime")
    return write_bundle(plan, folder / "bench.regcache", options=options)


def rate(run: Callable[[], int]) -> tuple[float, int]:
    """Images a second of `run`, and how many it says it did."""
    began = time.perf_counter()
    count = run()
    return count / (time.perf_counter() - began), count


def command(bundle: Path, data: Path, output: Path, batch: int) -> tuple[float, int]:
    """Images a second of `regcache embed`, of its own count, and its peak memory in bytes."""
    words = ["embed", str(bundle), "--data", str(data), "--output", str(output), "--json", "-q"]
    words += ["--metadata", "jsonl", "--batch-size", str(batch), "--part-images", "1000"]
    code = (
        "from regcache_deploy.cli.main import main;"
        "from regcache_deploy.work.count import peak_memory;"
        f"main({words!r});"
        "print(peak_memory())"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    speed = next(line for line in found if "images_per_second" in line)
    return float(speed.split(":")[1].strip(" ,")), int(found[-1])


def batches(decoders: Decoders, pictures: list[Picture], batch: int) -> Iterator[Pixels]:
    for _, (pixels, _) in decoders.batches(pictures, batch):
        yield pixels


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    settle_threads(None)
    model = load_model(options.model, options.pretrained)
    files = sorted(p for p in options.data.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    rows: list[dict[str, Any]] = []
    name = f"{options.model} ({options.pretrained})" if options.pretrained else options.model

    def row(what: str, images: int, speed: float | None, peak: float | None = None) -> None:
        engine = next((r["images_per_second"] for r in rows if r["what"] == "engine alone"), None)
        share = speed / engine if speed and engine else None
        cpu = f"{platform.machine()}, {os.cpu_count()} CPUs"
        values = (name, what, images, speed, share, peak, cpu)
        rows.append(dict(zip(COLUMNS, values, strict=True)))
        print(rows[-1], flush=True)

    with tempfile.TemporaryDirectory(dir=options.scratch) as text:
        folder = Path(text)

        def listed(count: int) -> Path:
            place = folder / f"{count}.txt"
            chosen = itertools.islice(itertools.cycle(files), count)
            place.write_text("".join(f"{file.resolve()}\n" for file in chosen))
            return place

        few, many = listed(options.images // 4), listed(options.images)
        pictures = list(open_collection(str(many), 10**9).parts[0].pictures())
        with Decoders(model.preprocess) as decoders:
            warm = next(batches(decoders, pictures[:CALIBRATION], CALIBRATION))
            bundle = make_bundle(model.encoder, model.preprocess, warm, folder)
            some = pictures[: options.decoded]
            speed, count = rate(lambda: sum(map(len, batches(decoders, some, options.batch_size))))
            row("decoding alone", count, speed)
            held = list(batches(decoders, pictures[: options.held], options.batch_size))
        opened, preprocess = Bundle.open(bundle), Preprocess(model.preprocess)
        with open_engine("onnxruntime", opened, None, (1, options.batch_size)) as engine:
            ready = [preprocess.in_layout(pixels, engine.pixels) for pixels in held]
            engine.infer(ready[0])
            speed, count = rate(lambda: sum(len(engine.infer(images)) for images in ready))
        row("engine alone", count, speed)
        for index, data in enumerate((few, many)):
            output = folder / f"out{index}"
            speed, peak = command(bundle, data, output, options.batch_size)
            row("regcache embed", len(data.read_text().splitlines()), speed, peak / 2**20)
        if options.torch_images:
            with Decoders(model.preprocess) as decoders, torch.no_grad():
                some = pictures[: options.torch_images]

                def run() -> int:
                    done = 0
                    for pixels in batches(decoders, some, options.batch_size):
                        features = model.encoder(torch.from_numpy(preprocess.normalized(pixels)))
                        done += len(np.asarray(features, np.float16))
                    return done

                speed, count = rate(run)
            row("PyTorch FP32, same decoders", count, speed, peak_memory() / 2**20)
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="ViT-B-16")
    parser.add_argument("--pretrained", default="random:0")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--decoded", type=int, default=1000, help="for the speed of decoding")
    parser.add_argument("--held", type=int, default=256, help="for the speed of the engine")
    parser.add_argument("--torch-images", type=int, default=160, help="0 leaves PyTorch out")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--scratch", type=Path, default=None)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    options.pretrained = options.pretrained or None
    rows = measure(options)
    with options.output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
