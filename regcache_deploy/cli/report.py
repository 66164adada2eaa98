"""Gather the answer, the pictures and the tables of a run in one HTML page that opens offline."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from ..errors import BundleError, ConfigError
from ..work.paths import beside, require_writable_file
from ..work.progress import Reporter
from ..work.settings import MAX_THREADS, in_range
from .common import QUIET, add_common_arguments, add_device_argument

HELP = "one self-contained HTML page of a finished run, or of several"

EXAMPLES = """\
  regcache report runs/X
  regcache report runs/X runs/Y runs/Z               # side by side
  regcache report runs/X --triton model_repository"""

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `regcache report`."""
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="folder of `regcache search` or `regcache export`; several are compared on one page",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE.html",
        help="page (default RUN/report.html; of several, compare.html beside the first)",
    )
    parser.add_argument(
        "--bundle", type=Path, metavar="BUNDLE", help="default: the bundle in RUN, if there is one"
    )
    parser.add_argument(
        "--bench",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="rows of regcache bench (CSV, JSON) and benchmarks/peers.py, beside RUN/bench* and "
        "RUN/peers*",
    )
    parser.add_argument(
        "--layers",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure the error by layer: three passes a linear over eight images, with torch",
    )
    parser.add_argument(
        "--triton",
        type=Path,
        metavar="DIR",
        help="also write DIR/NAME/config.pbtxt and DIR/NAME/1/model.onnx for Triton",
    )
    parser.add_argument(
        "--engine",
        type=Path,
        metavar="KEY.engine",
        help="for --triton: serve this TensorRT engine of the bundle in place of the ONNX file",
    )
    add_device_argument(parser, "of the error by layer")
    parser.add_argument(
        "--threads", type=int, metavar="N", help="CPU threads of the error by layer"
    )
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Write the page and print where it is. Returns the exit code."""
    if args.output is not None:
        require_writable_file(args.output, "--output")
    if args.engine is not None and args.triton is None:
        raise ConfigError("--engine goes with --triton DIR")
    in_range("--threads", args.threads, 1, MAX_THREADS)
    written = _compare(args) if len(args.runs) > 1 else _report(args)
    print(json.dumps(written) if args.json else "\n".join(written.values()))
    return 0


def _compare(args: argparse.Namespace) -> dict[str, str]:
    from ..report.compare import write_comparison
    from ..report.document import load_document

    for option in ("bundle", "bench", "triton"):
        if getattr(args, option):
            raise ConfigError(f"--{option} goes with one run, not with {len(args.runs)}")
    _refuse_unread(args, f"and {len(args.runs)} runs are compared without it")
    output = args.output or beside(args.runs[0]) / "compare.html"
    write_comparison([(folder, load_document(folder)) for folder in args.runs], output)
    return {"report": str(output)}


def _report(args: argparse.Namespace) -> dict[str, str]:
    from ..report.bundle_sections import read_bundle
    from ..report.document import load_document
    from ..report.html import write_page

    (folder,) = args.runs
    reporter = Reporter(quiet=args.verbosity == QUIET or args.json)
    output = args.output or folder / "report.html"
    bundle = args.bundle or find_bundle(folder)
    if bundle is None:
        _refuse_unread(args, f"and {folder} holds no bundle")
    elif not args.layers:
        _refuse_unread(args, "which --no-layers leaves out")
    document = load_document(folder, args.bench, bundle)
    if bundle is not None:
        with reporter.stage("reading the bundle"):
            document |= read_bundle(bundle)
        if args.layers:
            document |= _block_errors(bundle, folder, reporter, args)
    written = {"report": str(output)}
    if args.triton is not None:
        if bundle is None:
            raise ConfigError(f"{folder} holds no bundle for --triton; pass --bundle")
        from regcache_engines.bundle import Bundle
        from regcache_export.triton import write_model_repository

        with reporter.stage("writing the model repository"):
            opened = Bundle.open(bundle)
            made = write_model_repository(opened, args.triton, engine=args.engine)
        written["triton"] = str(made)
    with reporter.stage("drawing the page"):
        write_page(folder, document, output)
    return written


def _refuse_unread(args: argparse.Namespace, why: str) -> None:
    """Raise ConfigError for an option of the error by layer where none is measured."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    for name in ("device", "threads"):
        if getattr(args, name) != parser.get_default(name):
            raise ConfigError(f"--{name} is of the error by layer, {why}; leave it out")


def find_bundle(folder: Path) -> Path | None:
    """The bundle in a run folder, or None.

    Raises:
        ConfigError: there are several.
    """
    found = sorted(path for path in folder.glob("*.regcache") if path.is_dir())
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ConfigError(f"{folder} holds several bundles ({names}); name one with --bundle")
    return found[0] if found else None


def _block_errors(
    bundle: Path, folder: Path, reporter: Reporter, args: argparse.Namespace
) -> dict[str, Any]:
    """The error by layer, or nothing where it cannot be measured, with a message."""
    from regcache_engines.bundle import Bundle

    from ..compat import require
    from ..report.kept_errors import kept_errors
    from ..work.threads import settle_threads

    opened = Bundle.open(bundle)
    kept = kept_errors(opened, folder)
    if kept is not None:  # without the seconds that torch takes to import
        return {"block_errors": kept}
    with reporter.stage("loading torch"):
        require("torch", "search")
        from ..report.block_errors import kept_block_errors
    settle_threads(args.threads)
    try:
        return {"block_errors": kept_block_errors(opened, folder, reporter, args.device)}
    except BundleError as error:
        log.warning("no error by layer: %s", error)
        return {}
