"""Search a RegCache for an encoder, quantize it, and write an ONNX bundle that runs in INT8."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..bundling.settings import GraphSettings
from ..data.settings import DataSettings
from ..encoders.known import check_model, check_names
from ..encoders.settings import ModelSettings
from ..quantization.settings import QuantizerSettings
from ..run.finished import check_unchanged, parts_of
from ..run.options import ExportOptions
from ..search.settings import FixedChoice, MergeSettings, SearchSettings
from ..work.progress import Reporter
from ..work.settings import MachineSettings, WorkerSettings
from .arguments import add_settings, given, print_configuration
from .common import (
    QUIET,
    VERBOSE,
    add_common_arguments,
    add_run_arguments,
    load_libraries,
    require_workers,
    say_what_random_is,
)

HELP = "search, quantize and write an ONNX bundle"

EXAMPLES = """\
  regcache export                                  # the embedded demo
  regcache export --model ViT-B-16 --pretrained openai \\
      --data /data/imagenet/train --eval-data /data/imagenet/val --limit 5000
  regcache export --from runs/X-search             # bake the choice of a search"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `regcache export`; their defaults are those of `ExportOptions`."""
    add_settings(parser, ModelSettings, "model")
    add_settings(parser, QuantizerSettings, "quantizer")
    add_settings(parser, DataSettings, "data")
    add_settings(parser, ExportOptions, "way to the INT8 file", only=("recipe",))
    fixed = add_settings(parser, FixedChoice)
    fixed.add_argument(
        "--from",
        dest="from_run",
        type=Path,
        metavar="RUN",
        help="bake the choice of a finished `regcache search`, with its options",
    )
    add_settings(parser, SearchSettings)
    add_settings(parser, MergeSettings)
    add_settings(parser, GraphSettings, "graph")
    machine = add_settings(parser, MachineSettings, "machine", without=("seed",))
    machine.add_argument(
        "--output", type=Path, metavar="DIR", help="result folder (default runs/MODEL-BASELINE)"
    )
    add_settings(parser, WorkerSettings, "many processes")
    add_run_arguments(parser)
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the export and print what it found. Returns the exit code."""
    options = ExportOptions(**given(ExportOptions, args))
    parts = None
    if args.from_run is not None:
        check_unchanged(options, args.from_run)
        parts = parts_of(args.from_run)
    options.check_read()
    options.check_paths()
    check_names(options.model, options.pretrained)
    if args.dry_run:
        check_model(options.model, options.pretrained)
        print_configuration(options.to_json(), as_json=args.json)
        return 0
    reporter = Reporter(quiet=args.verbosity == QUIET)
    # Say now what is not installed, not after minutes of searching.
    say_what_random_is(options.pretrained)
    require_workers(options.workers)
    load_libraries(reporter, ("onnx", "export"), ("onnxruntime", "cpu"))
    from ..report.terminal import print_result
    from ..run.export import run_export

    result = run_export(options, reporter, parts, args.from_run)
    print_result(result, args.json, args.verbosity == VERBOSE, options.output_dir)
    return 0
