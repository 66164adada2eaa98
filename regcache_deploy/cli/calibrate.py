"""Measure the activation ranges of a naive plan again, on any number of images."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ..compat import import_open_clip, require
from ..errors import ConfigError
from ..options import MAX_THREADS, OBSERVER_NAMES
from ..paths import require_writable
from ..progress import Reporter
from .common import QUIET, add_common_arguments, add_run_arguments

HELP = "set the ranges of a naive plan on a stream of images, in constant memory"


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
        help="result folder (default: DIR-OBSERVER beside the plan's)",
    )
    parser.add_argument(
        "--observer",
        default=OBSERVER_NAMES[0],
        metavar="NAME",
        help=f"how a range is set: {', '.join(OBSERVER_NAMES)} (default %(default)s)",
    )
    parser.add_argument("--images", type=int, metavar="N", help="at most N images (default: all)")
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
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="threads that decode (default: cores)"
    )
    add_run_arguments(parser)
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Stream, write, and print the ranges that changed most. Returns the exit code."""
    _check(args)
    output = args.output or args.plan.resolve().with_name(
        f"{args.plan.resolve().name}-{args.observer}"
    )
    require_writable(output)
    if args.dry_run:
        values = {**vars(args), "plan": str(args.plan), "output": str(output)}
        print(json.dumps(values, indent=1, default=str))
        return 0
    import_open_clip()
    require("onnx", "export")
    require("onnxruntime", "cpu")
    import torch

    from ..recalibrate import RecalibrateOptions, recalibrate

    if args.threads:
        torch.set_num_threads(args.threads)
    options = RecalibrateOptions(
        plan=args.plan,
        data=args.data,
        output=output,
        observer=args.observer,
        images=args.images,
        batch_size=args.batch_size,
        workers=args.workers,
        certificate_images=args.certificate_images,
        seed=args.seed,
    )
    found = recalibrate(options, Reporter(quiet=args.verbosity == QUIET or args.json))
    if args.json:
        print(json.dumps(found, indent=1))
        return 0
    layers = found["layers"]
    ranking = sorted(layers, key=lambda n: layers[n]["after"] / layers[n]["before"])
    sys.stdout.write(
        f"{found['bundle']}: {found['images']} images, {found['observer']}; "
        f"{found['observer_bytes'] / 2**20:.2f} MiB of observers\n"
    )
    for name in (*ranking[:3], *ranking[3:][-2:]):
        row = layers[name]
        sys.stdout.write(
            f"  {name:<24} scale {row['before']:.3g} -> {row['after']:.3g}, "
            f"clips at {row['kept_of_largest']:.1%} of the largest value\n"
        )
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.observer not in OBSERVER_NAMES:
        raise ConfigError(f"--observer {args.observer}: take one of {', '.join(OBSERVER_NAMES)}")
    for name in ("images", "certificate_images", "batch_size", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            option = name.replace("_", "-")
            raise ConfigError(f"--{option} {value} is out of range: take at least 1")
    if args.threads is not None and args.threads > MAX_THREADS:
        raise ConfigError(f"--threads {args.threads} is out of range: take 1 to {MAX_THREADS}")
    if args.workers < 0:
        raise ConfigError(f"--workers {args.workers} is out of range: take 0 or more")
