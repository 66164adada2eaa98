"""Search RegCache's numbers for an encoder and a quantizer, resumably, and show what happened."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path

from ..data.settings import DataSettings
from ..encoders.known import check_model, check_names
from ..encoders.settings import ModelSettings
from ..errors import ConfigError
from ..quantization.settings import QuantizerSettings
from ..run.options import ExportOptions
from ..search.settings import FixedChoice, MergeSettings, SearchSettings
from ..work.progress import Reporter
from ..work.settings import MachineSettings, WorkerSettings
from .arguments import PUBLISHED, add_settings, given, print_configuration
from .common import (
    QUIET,
    add_common_arguments,
    add_run_arguments,
    load_libraries,
    require_workers,
    say_what_random_is,
)

HELP = "find prefix and delete counts, count the work, draw pictures"

EXAMPLES = """\
  regcache search                                    # the embedded demo
  regcache search --model ViT-B-16 --pretrained openai --data DIR --ablation"""

SETTINGS = (
    ModelSettings,
    DataSettings,
    SearchSettings,
    FixedChoice,
    MergeSettings,
    MachineSettings,
    WorkerSettings,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `regcache search`."""
    add_settings(parser, ModelSettings, "model")
    add_settings(parser, QuantizerSettings, "quantizer", only=PUBLISHED)
    add_settings(parser, DataSettings, "data")
    add_settings(parser, SearchSettings)
    add_settings(parser, FixedChoice)
    add_settings(parser, MergeSettings)
    parser.add_argument(
        "--ablation",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="also search and evaluate every corner for all bit widths and baselines",
    )
    machine = add_settings(parser, MachineSettings, "machine", without=("seed",))
    machine.add_argument(
        "--output", type=Path, metavar="DIR", help="run folder (default runs/MODEL-BASELINE-search)"
    )
    add_settings(parser, WorkerSettings, "many processes")
    add_run_arguments(parser)
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Search and print the decision. Returns the exit code."""
    options = ExportOptions(**given(ExportOptions, args))
    if options.output is None:
        options = replace(options, output=Path("runs") / f"{options.run_name}-search")
    if args.ablation and options.observer != ExportOptions.observer:
        raise ConfigError(
            f"--ablation compares the baselines as published, without --observer {options.observer}"
            "; take one of the two"
        )
    options.check_read()
    options.check_paths()
    check_names(options.model, options.pretrained)
    if args.dry_run:
        check_model(options.model, options.pretrained)
        taken = [*PUBLISHED, "output", *(f.name for each in SETTINGS for f in fields(each))]
        values = {name: options.to_json()[name] for name in taken} | {"ablation": args.ablation}
        print_configuration(values, as_json=args.json)
        return 0
    reporter = Reporter(quiet=args.verbosity == QUIET)
    say_what_random_is(options.pretrained)
    require_workers(options.workers)
    load_libraries(reporter)
    from ..report.terminal import print_search
    from ..run.search import run_search

    result = run_search(options, reporter, ablation=args.ablation)
    print_search(result, as_json=args.json)
    return 0
