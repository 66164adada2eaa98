"""Cost and decision quality of the default search against the full grid, seed by seed.

    python benchmarks/search_cost.py --model planted-small --seeds 0 1 2 3 4 --output FILE.csv
    python benchmarks/search_cost.py --model planted-vit-b-16 --grid pruned --output FILE.csv

Finished evaluations are kept in `--parts`: an interrupted run goes on where it stopped. The full
grid is run for real. `--grid pruned` finds the same optimum, but leaves each choice as soon as it
is certain to be worse than the default's; `--grid confirmed` leaves it as soon as a paired test
says that it is not better by more than the smallest gain; `--grid none` only counts the cost of
the full grid, by its formula. All models here are synthetic or have planted sinks, and every row
says so.
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

import planted_vit
import torch

from regcache_deploy.encoders.load import LoadedModel, load_model
from regcache_deploy.evaluation.image_sets import load_image_sets
from regcache_deploy.quantization.choice import chosen_baseline
from regcache_deploy.run.options import ExportOptions
from regcache_deploy.search.find import FoundChoice, find_choice
from regcache_deploy.search.result import preference
from regcache_deploy.search.settings import CHOICES
from regcache_deploy.work.progress import Reporter

MODELS = ("demo", "planted-small", "planted-vit-b-16")


def load(name: str, seed: int) -> LoadedModel:
    """A model; the planted ones get new weights with every seed."""
    if name == "demo":
        return load_model("demo")
    structure = planted_vit.small() if name == "planted-small" else planted_vit.Structure()
    return planted_vit.load(structure, seed)


def measure(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One row."""
    options = ExportOptions(
        baseline=args.baseline,
        bits=args.bits,
        search_images=args.images,
        calibration_images=args.calibration,
        batch_size=args.batch_size,
        limit=2,
        seed=seed,
        objective=args.objective,
    )
    model = load(args.model, seed)
    default = _find(options, model, args)
    row = {
        "model": model.name,
        "caution": model.caution,
        "weights_sha256": model.weights_sha256()[:16],
        "baseline": args.baseline,
        "bits": args.bits,
        "seed": seed,
        "search_images": args.images,
        "calibration_images": args.calibration,
        "objective": default.objective.name,
        "sensitive_layer": default.sensitivity.layer,
        **_choice("default", default),
        "block_forwards": default.cost.block_forwards,
        "exhaustive_block_forwards": default.cost.exhaustive_block_forwards,
        "share": f"1/{1 / default.cost.share:.1f}",
        "undecided": default.result.undecided,
        "default_seconds": _seconds(default),
    }
    if args.grid != "none":
        grid = _find(replace(options, strategy=args.grid), model, args)
        row |= _against_grid(default, grid, args.grid)
    row["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, shared; no GPU"
    return row


def _find(options: ExportOptions, model: LoadedModel, args: argparse.Namespace) -> FoundChoice:
    reporter = Reporter(quiet=not args.verbose)
    sets = load_image_sets(options, model, reporter, args.parts)
    return find_choice(
        options, chosen_baseline(options, options.seed), model.encoder, sets, reporter
    )


def _seconds(found: FoundChoice) -> float | str:
    """Wall time; empty where finished parts of an earlier run were read."""
    return "" if found.cost.resumed_block_forwards else round(found.cost.seconds, 1)


def _choice(prefix: str, found: FoundChoice) -> dict[str, Any]:
    config = found.result.best
    return {
        f"{prefix}_choice": f"t={config.prefix_block} tau={config.prefix_count} "
        f"k={config.delete_block} deleted={config.delete_count} "
        f"absent={config.range_delete_count}",
        f"{prefix}_value": found.result.score.value,
    }


def _against_grid(default: FoundChoice, grid: FoundChoice, strategy: str) -> dict[str, Any]:
    """The grid's decision, its best trial on all images, and whether the default is as good.

    What the grid left before has been shown to be no better, for certain or by its test.
    """
    best = max(grid.result.full_trials, key=lambda trial: preference(trial.config, trial.score))
    gap = best.score.value - default.result.score.value
    if default.objective.name == "top1":
        shown, met = f"{100 * gap:.2f} points", gap <= 0.001 + 1e-12
    else:
        relative = gap / max(1 - best.score.value, 1e-12)
        shown, met = f"{relative:.3%} of the feature error", relative <= 0.005
    return {
        "grid": f"{len(grid.space.grid())} choices, {strategy}",
        "grid_block_forwards": grid.cost.block_forwards,
        "evaluated_on_all_images": len({trial.config for trial in grid.result.full_trials}),
        **_choice("grid", grid),
        "grid_optimum": best.score.value,
        "gap_to_optimum": shown,
        "within_bar": met,
        "same_sensitive_block": grid.sensitivity.block == default.sensitivity.block,
        "grid_seconds": _seconds(grid),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="planted-small")
    parser.add_argument("--baseline", default="naive")
    parser.add_argument("--bits", default="W8A8")
    parser.add_argument("--objective", default="auto")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--calibration", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--grid", choices=(*CHOICES["strategy"][1:], "none"), default="exhaustive")
    parser.add_argument("--parts", type=Path, default=Path("runs/search_cost/parts"))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows: list[dict[str, Any]] = []
    for seed in args.seeds:
        began = time.monotonic()
        rows.append(measure(args, seed))
        print(rows[-1], f"{time.monotonic() - began:.0f} s", flush=True)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        with args.output.open("w", newline="", encoding="utf-8") as file:
            columns = list(dict.fromkeys(name for row in rows for name in row))
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
