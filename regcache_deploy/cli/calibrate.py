"""Measure the activation ranges of a plan again, on a stream of any number of images."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regcache_engines.documents import read_json

from ..errors import ConfigError
from ..quantization.settings import QuantizerSettings, check_observer_of
from ..work.invocation import typed
from ..work.json_file import json_text
from ..work.paths import require_writable
from ..work.progress import Reporter
from ..work.settings import MAX_THREADS, check_seed, in_range
from .arguments import add_settings, print_arguments
from .common import (
    QUIET,
    add_common_arguments,
    add_device_argument,
    add_run_arguments,
    add_workers_arguments,
    load_libraries,
    require_workers,
)

HELP = "set the ranges of a plan on a stream of images, in constant memory"

EXAMPLES = """\
  regcache calibrate runs/X --data DIR --images 5000
  regcache calibrate runs/X --data 'shards/{000..012}.tar' --observer percentile"""


MOST = 5
"""Linears that are printed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `regcache calibrate`."""
    parser.add_argument("plan", type=Path, metavar="DIR", help="result folder with plan.json")
    parser.add_argument(
        "--data",
        required=True,
        metavar="DATA",
        help="a folder of images, shards, torchvision:NAME:ROOT, or demo",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="result folder (default: beside the plan's, DIR-OBSERVER or DIR-sample)",
    )
    add_settings(parser, QuantizerSettings, "quantizer", only=("observer",))
    parser.add_argument("--images", type=int, metavar="N", help="at most N images (default: all)")
    parser.add_argument(
        "--keep-images",
        type=int,
        default=64,
        metavar="N",
        help="sample of the stream that ptq4vit and repqvit search on (default %(default)s)",
    )
    parser.add_argument(
        "--certificate-images",
        type=int,
        default=32,
        metavar="N",
        help="images that travel in the bundle, for `regcache verify` (default %(default)s)",
    )
    parser.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="images per pass (default 32)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    add_device_argument(parser)
    add_workers_arguments(parser, "threads")
    add_run_arguments(parser)
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Stream, write, and print the ranges that changed most. Returns the exit code."""
    _check(args)
    place = args.plan.resolve()
    output = args.output or place.with_name(f"{place.name}-{_suffix(args)}")
    require_writable(output)
    if args.dry_run:
        print_arguments(args, output=output)
        return 0
    if not (args.plan / "plan.json").is_file():
        from regcache_export.plan import Plan

        Plan.load(args.plan)  # says what is there instead, before torch is imported
    reporter = Reporter(quiet=args.verbosity == QUIET or args.json)
    load_libraries(reporter, ("onnx", "export"), ("onnxruntime", "cpu"))
    from ..run.calibrate import RecalibrateOptions, recalibrate
    from ..work.threads import settle_threads

    settle_threads(args.threads)
    options = RecalibrateOptions(
        plan=args.plan,
        data=args.data,
        output=output,
        observer=args.observer,
        images=args.images,
        keep_images=args.keep_images,
        batch_size=args.batch_size,
        threads=args.threads,
        decoders=args.decoders,
        workers=args.workers,
        certificate_images=args.certificate_images,
        seed=args.seed,
        device=args.device,
    )
    found = recalibrate(options, reporter)
    if args.json:
        print(json_text(found))
        return 0
    print_ranges(found)
    return 0


def print_ranges(found: Mapping[str, Any]) -> None:
    """The bundle, and the linears whose input scale changed most."""
    from ..work.terminal import add_row, new_table, place, prose, show, stdout_console

    console = stdout_console()
    layers = found["layers"]
    ratios = {name: row["after"] / row["before"] for name, row in layers.items()}
    ranking = sorted(ratios, key=lambda name: -abs(math.log(ratios[name])))
    clips = any("kept_of_largest" in row for row in layers.values())
    heads = ["linear", "scale\nbefore", "scale\nafter", "change"]
    how = found["observer"] or f"{found['kept_images']} of them kept"
    title = f"Input ranges that changed most, on {found['images']} images ({how})"
    table = new_table(heads + ["clips at, %\nof the largest"] * clips)
    for name in ranking[:MOST]:
        row = layers[name]
        cells = [name, f"{row['before']:.3g}", f"{row['after']:.3g}"]
        cells.append(f"{100 * (ratios[name] - 1):+.1f} %")
        cells += [f"{100 * row['kept_of_largest']:.1f}"] if "kept_of_largest" in row else []
        add_row(table, *cells)
    show(console, title, table)
    console.print()
    mib = found["observer_bytes"] / 2**20
    prose(
        console,
        "A scale is the step between two codes: a smaller one resolves finer and clips earlier. "
        "Which is better the evaluation says. "
        f"Observers took {mib:.2f} MiB, whatever the number of images.",
    )
    place(console, f"file: {found['bundle']}")
    words = ("regcache", "eval", found["bundle"], "--on", "fp32,onnxruntime", "--data", "DIR")
    place(console, f"next: {typed(*words)}")


def _suffix(args: argparse.Namespace) -> str:
    """The observer; `sample` for a baseline that has none. A plan that is no plan fails later."""
    try:
        baseline = read_json(args.plan / "plan.json")["provenance"]["baseline"]
    except (OSError, ValueError, KeyError, TypeError):
        baseline = "naive"
    return str(args.observer) if baseline == "naive" else "sample"


def _check(args: argparse.Namespace) -> None:
    check_observer_of("naive", args.observer)
    for name in ("images", "keep_images", "certificate_images", "batch_size", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            option = name.replace("_", "-")
            raise ConfigError(f"--{option} {value} is out of range: take at least 1")
    if args.threads is not None and args.threads > MAX_THREADS:
        raise ConfigError(f"--threads {args.threads} is out of range: take 1 to {MAX_THREADS}")
    in_range("--decoders", args.decoders, 0, MAX_THREADS)
    require_workers(args.workers)
    check_seed(args.seed)
