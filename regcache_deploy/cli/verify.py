"""Check that a bundle still computes what was certified at its export. Needs no torch."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ..work.progress import Reporter
from .common import QUIET, add_common_arguments

HELP = "recompute a bundle's certificate with numpy and ONNX Runtime"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `regcache verify`."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder NAME.regcache")
    parser.add_argument(
        "--images",
        type=int,
        metavar="N",
        help="run on the first N of the certificate's images (default: all of them)",
    )
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Verify and print what was found; a difference ends in exit code 6."""
    from regcache_engines.bundle import Bundle
    from regcache_export.verify import verify_bundle

    from ..errors import ConfigError

    if args.images is not None and args.images < 1:
        raise ConfigError(f"--images {args.images} is out of range: take at least 1")
    reporter = Reporter(quiet=args.verbosity == QUIET or args.json)
    with reporter.stage("recomputing the certificate"):
        report = verify_bundle(Bundle.open(args.bundle), args.images)
    if args.json:
        print(json.dumps(report.to_json(), indent=1))
    elif report.problem is None:
        optimized = report.optimized
        top1 = "" if optimized.top1 is None else f", {optimized.top1:.1%} of classes equal"
        if optimized.explained:
            top1 += (
                f"; rounding noise explains {len(optimized.explained)} of {report.images} images"
            )
        levels = f", {report.levels} levels without a code" if report.levels else ""
        what = "optimized against written graph"
        if optimized.half is not None:
            what = "float16 body against the same graph in float32"
        codes = older = ""
        if report.hashed:
            codes = f"  {report.same_codes:.1%} of the nodes have the very codes of the export\n"
        if report.unknown:
            older = f"  not in its certificate, of an older version: {', '.join(report.unknown)}\n"
        if report.pairs:
            same, images = report.pairs["same"], report.pairs["images"]
            codes += f"  {same / images:.1%} of the images merge the same pairs of tokens\n"
        sys.stdout.write(
            f"{args.bundle}: verified on {report.images} images\n"
            f"  {report.nodes} nodes against the numpy reference, block by block: "
            f"{report.codes} codes{levels}, {report.ties} of them other by a rounding tie\n"
            f"{codes}{older}"
            f"  {what}: mean cosine {optimized.mean_cosine:.6f}{top1}\n"
        )
    report.check()
    return 0
