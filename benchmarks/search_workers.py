"""One search in one process and with workers: time, processor time, and that they say the same.

    python benchmarks/search_workers.py --images 1024 --workers 2 --output FILE.csv

Needs the extra `scale`. Each has one thread. The time with workers is told without and with what it
takes to start them: Ray, and torch in every process. Random weights with planted sinks.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from pathlib import Path
from typing import Any

import planted_vit
import torch

from regcache_deploy.evaluation.image_sets import load_image_sets
from regcache_deploy.quantization.choice import chosen_baseline
from regcache_deploy.run.options import ExportOptions
from regcache_deploy.search.find import FoundChoice, find_choice
from regcache_deploy.work.progress import Reporter
from regcache_deploy.work.ray_team import RayTeam
from regcache_deploy.work.threads import settle_threads, sleep_while_idle

QUIET = Reporter(quiet=True)


def said(found: FoundChoice) -> list[Any]:
    """All that a search says, without its times."""
    cost = found.cost.to_json() | {"seconds": 0, "peak_memory_bytes": 0}
    trials = [(t.config, t.score.per_image.tolist(), t.work) for t in found.result.trials]
    return [cost, trials, found.result.best, found.sensitivity.layer]


def processor_seconds(process: int) -> float:
    """User and system time of a process so far."""
    words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--calibration", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    sleep_while_idle()
    settle_threads(1)
    options = ExportOptions(
        baseline="naive",
        search_images=args.images,
        calibration_images=args.calibration,
        batch_size=args.batch_size,
        limit=2,
        seed=args.seed,
    )
    model = planted_vit.load(planted_vit.small(), args.seed)

    def find(team: RayTeam | None) -> FoundChoice:
        baseline = chosen_baseline(options, options.seed)
        return find_choice(options, baseline, model.encoder, sets, QUIET, team=team)

    def fresh() -> Any:
        return load_image_sets(options, model, QUIET)

    own = os.getpid()
    sets, began, before = fresh(), time.monotonic(), processor_seconds(own)
    alone = find(None)
    one, one_cpu = time.monotonic() - began, processor_seconds(own) - before
    sets, opened = fresh(), time.monotonic()
    team = RayTeam(str(args.workers), torch.device("cpu"), 1, None)
    processes = team.wait()
    began, before = time.monotonic(), processor_seconds(own)
    start = {process: processor_seconds(process) for process in processes}
    together = find(team)
    many, driver_cpu = time.monotonic() - began, processor_seconds(own) - before
    spent = [processor_seconds(process) - start[process] for process in processes]
    team.close()
    row = {
        "model": model.name,
        "caution": model.caution,
        "search_images": args.images,
        "calibration_images": args.calibration,
        "trials": len(alone.result.trials),
        "block_forwards": alone.cost.block_forwards,
        "same": said(alone) == said(together),
        "one_process_s": round(one, 1),
        "one_process_cpu_s": round(one_cpu, 1),
        "workers": args.workers,
        "workers_s": round(many, 1),
        "start_s": round(began - opened, 1),
        "driver_cpu_s": round(driver_cpu, 1),
        "worker_cpu_s": " ".join(f"{each:.1f}" for each in spent),
        "times_faster": round(one / many, 2),
        "times_faster_with_start": round(one / (many + began - opened), 2),
        "cores": os.cpu_count(),
    }
    print(row, flush=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with args.output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
