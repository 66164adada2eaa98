"""What the search takes on a GPU, beside the CPU of the same machine.

    python benchmarks/gpu_search.py --output benchmarks/results/gpu_search-GPU.csv

ViT-B/16 and ViT-L/14 with random weights on random pixels, `repqvit`, the default strategy: the
time does not depend on what the weights are. First the demo is searched on both devices and the
choices are compared. Then, for every model and number of images, the search is run whole where it
fits into what is left of `--seconds`; where it does not, a row is computed from the counted
block-forwards and the measured time of one, and says so. The CPU's rows are always computed, from
`--cpu-seconds` of it. The project has not run this on a GPU yet.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from regcache_deploy.data.images import Images
from regcache_deploy.encoders.canonical import Encoder
from regcache_deploy.encoders.load import load_model
from regcache_deploy.evaluation import FeatureFidelity
from regcache_deploy.evaluation.corners import simulate
from regcache_deploy.evaluation.image_sets import ImageSets, load_image_sets
from regcache_deploy.quantization.baselines import make_baseline
from regcache_deploy.quantization.simulate import Calibration, Quantization
from regcache_deploy.run.options import ExportOptions
from regcache_deploy.search.cost import calibration_walks
from regcache_deploy.search.find import find_choice, search_space
from regcache_deploy.search.strategies import race_budget
from regcache_deploy.work.devices import describe, fitting_batch, use_device
from regcache_deploy.work.progress import Reporter
from regcache_deploy.work.threads import settle_threads

COLUMNS = (
    "model", "images", "device", "name", "how", "seconds", "block_forwards",
    "ms_per_block_forward", "peak_gib", "choice", "threads", "torch", "cpu",
)  # fmt: skip
QUIET = Reporter(quiet=True)
CALIBRATION = 32
MARGIN = 1.3
"""A whole search is begun where so many times its computed time is left."""


def random_sets(encoder: Encoder, count: int, batch: int) -> ImageSets:
    """Search images of random pixels, and the float model's features of them."""
    generator = torch.Generator().manual_seed(0)
    shape = (count, *encoder.spec.image_size, 3)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    images = Images(pixels, (0.5,) * 3, (0.25,) * 3, "random pixels")
    plain = Calibration(encoder, Quantization())
    reference = simulate(plain, images.batches(batch), lambda n: None)
    tokens = encoder.embed(images.normalized(pixels[:CALIBRATION]))
    nothing = images.subset(slice(0, 2))
    return ImageSets(images, nothing, reference, tokens, FeatureFidelity(reference), None)


def timed(encoder: Encoder, seconds: float, batch: int) -> float:
    """Milliseconds of one block-forward in the simulation: the lowest of the batches that fit in.

    One image, one block. The first batch, which quantizes the weights, is left out.
    """
    sets = random_sets(encoder, max(batch, CALIBRATION), batch)
    numerics = make_baseline("repqvit").calibrate(encoder, sets.calibration_tokens).numerics()
    tokens, best = sets.tokens(encoder, torch.arange(batch)), float("inf")
    end = time.monotonic() + seconds
    with torch.no_grad():
        encoder.run_blocks(tokens, numerics=numerics).cpu()
        while best == float("inf") or time.monotonic() < end:
            began = time.perf_counter()
            encoder.run_blocks(tokens, numerics=numerics).cpu()
            best = min(best, time.perf_counter() - began)
    return 1000 * best / (batch * encoder.spec.depth)


def budget_of(settings: ExportOptions, encoder: Encoder, images: int) -> int:
    """Block-forwards that the default strategy may spend."""
    space = search_space(settings, encoder, encoder.spec.depth // 2)
    walks = calibration_walks(make_baseline("repqvit"))
    depth, share = encoder.spec.depth, settings.budget_fraction
    return race_budget(space, depth, images, CALIBRATION, walks, share)


def searched(
    settings: ExportOptions, encoder: Encoder, images: int, batch: int
) -> tuple[float, int, dict[str, Any]]:
    """Seconds, block-forwards and the choice of a whole search."""
    began = time.monotonic()
    sets = random_sets(encoder, images, batch)
    own = replace(settings, batch_size=batch, search_images=images)
    found = find_choice(own, make_baseline("repqvit"), encoder, sets, QUIET)
    return time.monotonic() - began, found.cost.block_forwards, found.result.best.to_json()


def demo_choice(device: torch.device, images: int) -> dict[str, Any]:
    """What the search chooses for the demo."""
    settings = ExportOptions(search_images=images, calibration_images=CALIBRATION, limit=8)
    model = load_model("demo").to(device)
    sets = load_image_sets(settings, model, QUIET)
    found = find_choice(settings, make_baseline("repqvit"), model.encoder, sets, QUIET)
    return {"layer": found.sensitivity.layer, **found.result.best.to_json()}


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    end = time.monotonic() + options.seconds
    device, cpu = use_device(options.device), torch.device("cpu")
    settle_threads(options.threads)
    settings = ExportOptions(calibration_images=CALIBRATION)
    known = {"threads": torch.get_num_threads(), "torch": torch.__version__, "cpu": _cpu()}
    rows: list[dict[str, Any]] = []
    choices = [demo_choice(each, options.demo_images) for each in (cpu, device)]
    same = "equal" if choices[0] == choices[1] else f"other: {choices[0]} and {choices[1]}"
    rows.append({**_row(device, "demo", options.demo_images, "measured"), "choice": same, **known})
    for name in options.models:
        model = load_model(name, "random:0", options.image_size)
        spec = model.encoder.spec
        for each, seconds in {cpu: options.cpu_seconds, device: 2.0}.items():
            encoder = model.encoder.to(each)
            batch = fitting_batch(each, options.batch_size, spec.num_tokens, spec.mlp_width)
            ms = timed(encoder, seconds, batch)
            for images in options.images:
                row = {**_row(each, name, images, "computed"), **known, "ms_per_block_forward": ms}
                count = budget_of(settings, encoder, images)
                expected = count * ms / 1000
                row |= {"seconds": expected, "block_forwards": count}
                last = each == device and (device != cpu or options.search_on_cpu)
                if last and MARGIN * expected < end - time.monotonic():
                    seconds, count, choice = searched(settings, encoder, images, batch)
                    row |= _row(each, name, images, "measured")
                    row |= {"seconds": seconds, "block_forwards": count, "choice": choice}
                print(row, flush=True)
                rows.append(row)
    return rows


def _row(device: torch.device, model: str, images: int, how: str) -> dict[str, Any]:
    about = describe(device)
    peak = about["peak_bytes"] / 2**30 if "peak_bytes" in about else None
    return {
        "model": model, "images": images, "device": about["device"],
        "name": about.get("name", ""), "how": how, "peak_gib": peak,
    }  # fmt: skip


def _cpu() -> str:
    return f"{platform.machine()}, {os.cpu_count()} CPUs"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--models", nargs="+", default=["ViT-B-16", "ViT-L-14"])
    parser.add_argument("--images", nargs="+", type=int, default=[512, 5000])
    parser.add_argument("--image-size", type=int, nargs=2, default=None)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--demo-images", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=270.0, help="of the whole script")
    parser.add_argument("--cpu-seconds", type=float, default=5.0, help="for the time of the CPU")
    parser.add_argument("--search-on-cpu", action="store_true", help="for a test without a GPU")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    rows = measure(options)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    print(f"{len(rows)} rows in {options.output}")


if __name__ == "__main__":
    main()
