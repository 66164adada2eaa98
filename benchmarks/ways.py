"""Every way to an INT8 file on held-out images, beside what the race on the search images chose.

    python benchmarks/ways.py --seeds 0 1 2 \
        --output benchmarks/results/ways-demo.csv

One row a way: its value on the search images, which the race saw, and on held-out images, which it
did not; paired with FP32 there. A way that the race did not try, because a plain one was level with
floating point, has the held-out value alone. So the best single way is known only afterwards, and
how far the chosen one stays behind it is the price of choosing. A seed draws other images for both
sets and for the calibration. Simulation. Finished rows of an earlier run into the same file are
kept.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from regcache_deploy.bench.results import write_rows
from regcache_deploy.encoders.demo_names import VARIANTS
from regcache_deploy.encoders.load import load_model
from regcache_deploy.encoders.model import LoadedModel
from regcache_deploy.evaluation.instances import InstanceTop1
from regcache_deploy.quantization.settings import AUTO, BASELINE_NAMES
from regcache_deploy.run.options import ExportOptions
from regcache_deploy.run.study import Study, decide_study
from regcache_deploy.search.statistics import compare_scores
from regcache_deploy.search.ways import Way
from regcache_deploy.work.progress import Reporter

DEMOS = ["demo", *VARIANTS]
KEY = ("model", "pretrained", "baseline", "bits", "seed", "n_search", "calibration_images")
USUAL = {"data": "", "limit": "", "budget_fraction": str(ExportOptions.budget_fraction)}
"""Columns that a file from before does not have; its rows are of these."""


@torch.no_grad()
def rows_of(study: Study) -> Iterator[dict[str, Any]]:
    """FP32, the ways that were raced in the race's order, and those that it left untried."""
    options, held_out, seed = study.options, study.held_out, study.options.seed
    features = held_out.float_features
    judge, search = study.sets.judge(features), study.found.objective
    reference = judge.score(features)
    shared = {
        "model": options.model,
        "pretrained": options.pretrained or "",
        "baseline": options.baseline,
        "bits": options.bits,
        "seed": seed,
        "metric": judge.name,
        "n": study.sets.judged,
        "search_metric": search.name,
        "n_search": len(study.sets.search),
        "calibration_images": len(study.sets.calibration_tokens),
        **more_key(options),
        "caution": study.model.caution or "",
    }
    if isinstance(search, InstanceTop1):  # as the race had it
        symmetric = search.symmetric()
        plain = symmetric.score(symmetric.reference)
    else:
        plain = search.score(study.sets.reference)
    yield shared | {
        "way": "fp32",
        "search_value": round(plain.value, 6),
        "value": round(reference.value, 6),
        "cosine": 1.0,
    }

    def judged(way: Way) -> dict[str, Any]:
        found = held_out.features(way.title, way.baseline, way.config, study.found.register)
        score = judge.score(found)
        pair = compare_scores(judge.name, reference, score, seed)
        return shared | {
            "way": way.name,
            "prefix_count": way.config.prefix_count,
            "range_delete_count": way.config.range_delete_count,
            "delete_count": way.config.delete_count,
            "value": round(score.value, 6),
            "cosine": round(score.fidelity, 6),
            "difference": round(pair.difference, 4),
            "low": round(pair.low, 4),
            "high": round(pair.high, 4),
            "lost": pair.lost,
            "won": pair.won,
        }

    for raced in study.raced:
        yield judged(raced.way) | {
            "search_value": round(raced.score.value, 6),
            "search_cosine": round(raced.score.fidelity, 6),
            "cost": raced.to_json()["cost"],
            "tied": int(raced.tied),
            "chosen": int(raced.chosen),
            "search_block_forwards": study.found.cost.block_forwards,
            "ways_block_forwards": study.ways_work,
        }
    for way in study.race.untried if study.race else []:
        yield judged(way)


def more_key(options: ExportOptions) -> dict[str, str]:
    """The columns of `USUAL`."""
    values = (options.data, options.limit, options.budget_fraction)
    texts = ("" if value is None else str(value) for value in values)
    return dict(zip(USUAL, texts, strict=True))


def finished(rows: list[dict[str, Any]], options: ExportOptions) -> list[dict[str, Any]]:
    """Rows of these options among those of an earlier run."""
    numbers = (options.seed, options.search_images, options.calibration_images)
    wanted = (options.model, options.pretrained or "", options.baseline, options.bits)
    own = dict(zip(KEY, (*wanted, *map(str, numbers)), strict=True)) | more_key(options)

    def of(row: dict[str, Any], name: str) -> str:
        return str(row.get(name, "")) or USUAL.get(name, "")

    return [row for row in rows if all(of(row, name) == value for name, value in own.items())]


def summary(rows: list[dict[str, Any]]) -> str:
    """The chosen way beside the best one and FP32, in one line; values in per cent of images."""
    ways = {row["way"]: float(row["value"]) for row in rows}
    reference = ways.pop("fp32")
    best = max(ways, key=lambda name: ways[name])
    chosen = next(row["way"] for row in rows if str(row.get("chosen")) == "1")
    first = rows[0]
    return (
        f"{first['model']} {first['bits']} seed {first['seed']}: FP32 {100 * reference:.2f}, "
        f"chosen {chosen} {100 * ways[chosen]:.2f}, best {best} {100 * ways[best]:.2f}, "
        f"behind it {100 * (ways[best] - ways[chosen]):.2f}, "
        f"behind FP32 {100 * (reference - ways[chosen]):.2f}"
    )


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    torch.set_num_threads(args.threads)
    rows: list[dict[str, Any]] = []
    if args.output.exists():
        with args.output.open(newline="") as file:
            rows = list(csv.DictReader(file))
    models: dict[str, LoadedModel] = {}
    for model, bits, seed in itertools.product(args.model, args.bits, args.seeds):
        options = ExportOptions(
            model=model,
            pretrained=args.pretrained,
            data=args.data,
            baseline=args.baseline,
            bits=bits,
            seed=seed,
            limit=args.limit,
            search_images=args.search_images,
            calibration_images=args.calibration_images,
            batch_size=args.batch_size,
            budget_fraction=args.budget_fraction,
            recipe=AUTO,
        )
        found = finished(rows, options)
        if not found:
            if model not in models:
                models[model] = load_model(model, args.pretrained)
            with tempfile.TemporaryDirectory(prefix="regcache-ways-") as scratch:
                study = decide_study(options, Reporter(quiet=True), Path(scratch), models[model])
                found = list(rows_of(study))
            day = time.strftime("%Y-%m-%d", time.gmtime())
            rows += [row | {"measured_at": day} for row in found]
            write_rows(args.output, rows, {})
        print(summary(found), flush=True)
    return 0


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", nargs="+", default=DEMOS)
    parser.add_argument("--pretrained", help="of one model")
    parser.add_argument("--data", type=Path, help="folder of images (default: the demo's)")
    parser.add_argument("--baseline", default=ExportOptions.baseline, choices=BASELINE_NAMES)
    parser.add_argument("--bits", nargs="+", default=["W8A8", "W6A6"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--limit", type=int, help="held-out images")
    parser.add_argument("--search-images", type=int, default=ExportOptions.search_images)
    parser.add_argument("--calibration-images", type=int, default=ExportOptions.calibration_images)
    parser.add_argument("--batch-size", type=int, default=ExportOptions.batch_size)
    parser.add_argument("--budget-fraction", type=float, default=ExportOptions.budget_fraction)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, required=True, help="CSV")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
