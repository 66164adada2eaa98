"""Time bundles on the engines of this machine, INT8 and float in turns, and say which is faster."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..work.json_file import json_text
from ..work.paths import beside, require_writable_file
from ..work.progress import Reporter
from .common import QUIET, add_common_arguments, check_bundle

if TYPE_CHECKING:
    from ..bench.measure import Settings

log = logging.getLogger(__name__)

HELP = "latency and throughput of bundles, INT8 beside float"

EXAMPLES = """\
  regcache bench runs/X/X.regcache --batch 1,8 --threads 1,4
  regcache bench runs/X/X.regcache --engine openvino --csv bench/"""

DEFAULT_COMPARE = "fp32,int8"
DEFAULT_HALF = "fp16,int8"
"""Of a bundle for TensorRT: what its user would deploy instead is half precision."""

AUTO_ENGINES = ("onnxruntime", "openvino", "cuda", "tensorrt_ep", "tensorrt")
"""What is tried where --engine does not say otherwise."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `regcache bench`."""
    parser.add_argument(
        "bundles", type=Path, nargs="+", metavar="BUNDLE", help="folders NAME.regcache"
    )
    what = parser.add_argument_group("what")
    what.add_argument(
        "--compare",
        metavar="LIST",
        help="precisions, by comma: int8 is the bundle; fp32 is the float file of the same "
        "encoder, written from the plan beside the bundle; fp16 for bundles of --target tensorrt. "
        f"Ratios are against the first one (default {DEFAULT_COMPARE}; {DEFAULT_HALF} for "
        "--target tensorrt)",
    )
    what.add_argument(
        "--engine",
        action="append",
        metavar="NAME",
        help=f"runtime; may be repeated: {', '.join(AUTO_ENGINES)}, tensorrt_rtx, tensorrt_rtx_ep. "
        "One that is named must run; without, all are tried and the others give their reason",
    )
    what.add_argument("--batch", default="1,8", metavar="LIST", help="default %(default)s")
    what.add_argument(
        "--threads", default="", metavar="LIST", help="CPU threads (default: the runtime's own)"
    )
    what.add_argument("--plan", type=Path, metavar="DIR", help="folder of plan.json, for fp32")
    what.add_argument("--fp32", type=Path, metavar="FILE.onnx", help="another float file")
    how = parser.add_argument_group("how")
    how.add_argument("--rounds", type=int, default=30, metavar="N", help="default %(default)s")
    how.add_argument(
        "--seconds",
        type=float,
        default=30.0,
        metavar="S",
        help="begin no further round after so long, for each batch size (default %(default)s)",
    )
    how.add_argument("--warmup", type=int, default=3, metavar="N", help="untimed calls first")
    how.add_argument(
        "--memory",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also measure peak memory, in a process of its own for every file and batch size",
    )
    how.add_argument(
        "--engines", type=Path, metavar="DIR", help="keep TensorRT engines that had to be built"
    )
    parser.add_argument(
        "--csv",
        type=Path,
        metavar="FILE|DIR",
        help="write the rows there; in a folder, the file is named after the environment (default: "
        "beside each bundle, where `regcache report` finds them)",
    )
    parser.add_argument(
        "--keep",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write the rows at all where --csv does not say where",
    )
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Time and print. Returns the exit code."""
    engines, settings = _settings(args)
    from regcache_engines.bundle import Bundle
    from regcache_export.bundle_graph import graph_options

    from ..bench.environment import describe_machine
    from ..bench.measure import Bench, row_columns
    from ..bench.results import (
        bench_document,
        environment_of_rows,
        print_table,
        results_file,
    )
    from ..bench.subjects import FLOAT_FILE, bundle_images, subjects_of

    for path in args.bundles:
        check_bundle(path)
    reporter = Reporter(quiet=args.verbosity == QUIET or args.json)
    with reporter.stage("opening the bundles"):
        bundles = [Bundle.open(path) for path in args.bundles]
    names = [bundle.path.resolve().name for bundle in bundles]
    if len(set(names)) < len(names):
        raise ConfigError("two bundles have the same name; rename one, the rows would look alike")
    machine = describe_machine()
    tables = [] if args.csv is None else [results_file(args.csv, "bench", machine)]
    for table in tables:
        require_writable_file(table, "--csv")
    if args.keep and not tables:  # beside each bundle, where `regcache report` looks
        folders = dict.fromkeys(beside(bundle.path) for bundle in bundles)
        tables = [results_file(folder, "bench", machine) for folder in folders]
    with tempfile.TemporaryDirectory(prefix="regcache-bench-") as scratch:
        subjects, pixels, sources = [], {}, {}
        for bundle in bundles:
            half = graph_options(bundle).target == "tensorrt" and args.fp32 is None
            precisions = _words(args.compare or (DEFAULT_HALF if half else DEFAULT_COMPARE))
            _refuse_unread(args, precisions)
            with reporter.stage(f"files of {bundle.path.name}: {', '.join(precisions)}"):
                found = subjects_of(
                    bundle,
                    precisions,
                    Path(scratch),
                    args.plan,
                    args.fp32,
                    args.compare is not None,
                )
            subjects += found
            name, most = found[0].name, max(settings.batches)
            pixels[name], sources[name] = bundle_images(bundle, most)
        bench = Bench(
            subjects,
            engines,
            pixels,
            settings,
            args.engines or Path(scratch) / "engines",
            reporter,
        )
        rows = [row_columns(row) for row in bench.run()]
    how = {
        "images": _images(sources),
        "fp32": str(args.fp32) if args.fp32 else FLOAT_FILE,
        "timed": "Engine.infer: checks of input and output included, preprocessing not",
        "rounds": settings.rounds,
        "seconds": settings.seconds,
        "warmup": settings.warmup,
        "turn_ms": settings.turn_ms,
    }
    document = bench_document(rows, machine, describe_machine(), how)
    try:
        if args.json:
            print(json_text(document))
        else:
            print_table(document)
        sys.stdout.flush()
    finally:  # a closed pipe takes no file with it, and a full disk no text
        write_tables(tables, rows, environment_of_rows(document), must=args.csv is not None)
    return 0


def _refuse_unread(args: argparse.Namespace, precisions: Sequence[str]) -> None:
    """Raise ConfigError where no float file is compared, or none is written, and one is given."""
    if args.fp32 is not None and "fp32" not in precisions:
        raise ConfigError("--fp32 goes with fp32 in --compare, which alone reads it")
    written = {"fp16"} if args.fp32 is not None else {"fp16", "fp32"}
    if args.plan is not None and not written & {*precisions}:
        raise ConfigError("--plan is for a float file that is written; leave it out")


def write_tables(
    tables: Sequence[Path], rows: list[dict[str, Any]], extra: dict[str, Any], must: bool
) -> None:
    """Write the rows and say where; a folder that cannot be written is an error only if it `must`.

    A bundle may lie where nobody may write, and is timed all the same.
    """
    from ..bench.results import write_rows

    for table in tables:
        try:
            write_rows(table, rows, extra)
        except OSError as error:
            if must:
                raise
            log.warning("the rows are not kept in %s: %s", table, error.strerror)
        else:
            log.info("rows: %s", table)


def _settings(args: argparse.Namespace) -> tuple[list[str], Settings]:
    from ..bench.measure import Settings
    from ..evaluation.engines import ENGINES

    named = args.engine or []
    for name in named:
        if name not in ENGINES:
            raise ConfigError(f"unknown engine '{name}'; take any of: {', '.join(ENGINES)}")
    for option, value, least in (("rounds", args.rounds, 1), ("warmup", args.warmup, 1)):
        if value < least:
            raise ConfigError(f"--{option} {value} is out of range: take at least {least}")
    if not args.seconds > 0:
        raise ConfigError(f"--seconds {args.seconds} is out of range: take more than 0")
    if args.compare is not None and not _words(args.compare):
        raise ConfigError(f"--compare {args.compare}: write precisions by comma: {DEFAULT_COMPARE}")
    threads: tuple[Any, ...] = _numbers("--threads", args.threads) or (None,)
    settings = Settings(
        batches=_numbers("--batch", args.batch) or (1,),
        threads=threads,
        rounds=args.rounds,
        seconds=args.seconds,
        warmup=args.warmup,
        memory=args.memory,
        must_run=frozenset(named),
    )
    return list(dict.fromkeys(named)) or list(AUTO_ENGINES), settings


def _images(sources: Mapping[str, str]) -> str:
    """What was run, in words; by bundle where they differ."""
    if len(set(sources.values())) == 1:
        return next(iter(sources.values()))
    return "; ".join(f"{name}: {source}" for name, source in sources.items())


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _numbers(option: str, text: str) -> tuple[int, ...]:
    words = _words(text)
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ConfigError(f"{option} {text}: write numbers of at least 1, by comma")
    return tuple(int(word) for word in words)
