"""Check that a bundle still computes what was certified at its export. Needs no torch."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..work.format import count_text, counted, percent
from ..work.json_file import json_text
from ..work.progress import Reporter
from .common import QUIET, add_common_arguments, check_bundle

if TYPE_CHECKING:
    from regcache_engines.signature import Signer

HELP = "recompute a bundle's certificate with numpy and ONNX Runtime"

EXAMPLES = """\
  regcache verify runs/X/X.regcache
  regcache verify runs/X/X.regcache --images 4       # a quick look"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `regcache verify`."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder NAME.regcache")
    parser.add_argument(
        "--images",
        type=int,
        metavar="N",
        help="run on the first N of the certificate's images (default: all of them)",
    )
    who = parser.add_argument_group("signature (extra sign)")
    who.add_argument("--identity", metavar="WHO", help="must have signed the bundle with sigstore")
    who.add_argument("--issuer", metavar="URL", help="OpenID provider that vouches for --identity")
    who.add_argument("--public-key", type=Path, metavar="FILE.pem", help="must have signed it")
    who.add_argument(
        "--signature", type=Path, metavar="FILE", help="default: BUNDLE.sig beside the bundle"
    )
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Verify and print what was found; a difference ends in exit code 6."""
    from regcache_engines.bundle import Bundle
    from regcache_engines.signature import verify_signature
    from regcache_export.verify import verify_bundle

    from ..errors import ConfigError

    if args.images is not None and args.images < 1:
        raise ConfigError(f"--images {args.images} is out of range: take at least 1")
    check_bundle(args.bundle)
    signer = _signer(args)
    if signer is not None:
        verify_signature(args.bundle, signer, args.signature)
    reporter = Reporter(quiet=args.verbosity == QUIET or args.json)
    with reporter.stage("recomputing the certificate"):
        report = verify_bundle(Bundle.open(args.bundle), args.images)
    if args.json:
        print(json_text(report.to_json()))
    elif report.problem is None:
        optimized = report.optimized
        top1 = ""
        if optimized.top1 is not None:
            top1 = f", {percent(optimized.top1, 1)} of classes equal"
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
            equal = percent(report.same_codes, 1)
            codes = f"  {equal} of the nodes have the very codes of the export\n"
        if report.unknown:
            older = f"  not in its certificate, of an older version: {', '.join(report.unknown)}\n"
        if report.pairs:
            share = percent(report.pairs["same"] / report.pairs["images"], 1)
            codes += f"  {share} of the images merge the same pairs of tokens\n"
        sys.stdout.write(
            f"{args.bundle}: verified on {counted(report.images, 'image')}\n"
            f"  {report.nodes} nodes, block by block against the numpy reference\n"
            f"  {count_text(report.codes)} codes{levels}, {report.ties} other by a rounding tie\n"
            f"{codes}{older}"
            f"  {what}: mean cosine {optimized.mean_cosine:.6f}{top1}\n"
        )
    report.check()
    return 0


def _signer(args: argparse.Namespace) -> Signer | None:
    from regcache_engines.signature import Signer

    if not (args.identity or args.issuer or args.public_key or args.signature):
        return None
    return Signer(args.identity, args.issuer, args.public_key)
