"""Search RegCache's numbers for an encoder and a quantizer, resumably, and show what happened."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields, replace
from pathlib import Path

from ..compat import import_open_clip
from ..errors import ConfigError
from ..options import ExportOptions
from ..progress import Reporter
from ..search_settings import CHOICES, SearchSettings
from .common import QUIET, add_common_arguments, add_run_arguments
from .shared import add_choice_arguments, add_count, add_data_arguments, add_model_arguments

HELP = "find prefix and delete counts, count the work, draw the pictures (--ablation)"

OPTIONS = (
    "baseline",
    "model",
    "pretrained",
    "img_size",
    "templates",
    "data",
    "eval_data",
    "output",
    "limit",
    "bits",
    "observer",
    "prefix_block",
    "prefix_count",
    "delete_count",
    "range_delete_count",
    "calibration_images",
    "search_images",
    "batch_size",
    "threads",
    "seed",
)
"""What a search takes of the export's options."""

READINGS = {
    "strategy": "race candidates on growing image subsets; or the full grid: confirmed (a choice "
    "is left once a paired test says that it is not better), pruned (once it is certain to lose), "
    "exhaustive",
    "ranking": "rank register candidates by the target block's input, or by fc2's input in block k",
    "register": "capture candidates in their images, or send their mean through the blocks alone",
    "candidates": "average the top 100, or take the best single one of the top 20",
    "delete_at": "delete before block k, or between its attention and its MLP",
    "objective": "auto is top-1 with labels and a text encoder, else cosine",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `regcache search`."""
    default, settings = ExportOptions, SearchSettings
    add_model_arguments(parser)
    add_data_arguments(parser)
    reading = parser.add_argument_group("reading of the method; the first word is the default")
    for name, words in CHOICES.items():
        reading.add_argument(
            f"--{name.replace('_', '-')}",
            default=getattr(settings, name),
            metavar="|".join(words),
            help=READINGS[name],
        )
    reading.add_argument(
        "--error",
        type=float,
        default=settings.error,
        metavar="P",
        help="chance that racing drops the best choice, or finds a gain in noise "
        "(default %(default)s)",
    )
    reading.add_argument(
        "--two-counts",
        action=argparse.BooleanOptionalAction,
        default=settings.two_counts,
        help="also set ranges without sinks that the graph keeps; --no-two-counts is as published "
        "(default: yes)",
    )
    add_choice_arguments(parser)
    parser.add_argument(
        "--ablation",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="also search and evaluate every corner for all bit widths and baselines",
    )
    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--output", type=Path, metavar="DIR", help="run folder (default runs/MODEL-BASELINE-search)"
    )
    machine.add_argument(
        "--memory",
        type=float,
        default=settings.memory,
        metavar="GIB",
        help="hidden states to keep; the rest is recomputed (default %(default)s)",
    )
    add_count(machine, "--batch-size", default.batch_size, "images per forward pass")
    add_count(machine, "--threads", default.threads, "CPU threads")
    add_run_arguments(parser)
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Search and print the decision. Returns the exit code."""
    options = ExportOptions(**{name: getattr(args, name) for name in OPTIONS})
    if options.output is None:
        options = replace(options, output=Path("runs") / f"{options.run_name}-search")
    names = [f.name for f in fields(SearchSettings)]
    settings = SearchSettings(**{name: getattr(args, name) for name in names})
    if args.ablation and options.observer != ExportOptions.observer:
        raise ConfigError(
            f"--ablation compares the baselines as published, without --observer {options.observer}"
            "; take one of the two"
        )
    options.check_paths()
    if args.dry_run:
        _print_configuration(options, settings, args)
        return 0
    import_open_clip()
    from ..report.terminal import print_search
    from ..search.run import run_search

    reporter = Reporter(quiet=args.verbosity == QUIET)
    result = run_search(options, settings, reporter, ablation=args.ablation)
    print_search(result, as_json=args.json)
    return 0


def _print_configuration(
    options: ExportOptions, settings: SearchSettings, args: argparse.Namespace
) -> None:
    values = {name: options.to_json()[name] for name in OPTIONS}
    values |= settings.identity() | {"memory": settings.memory, "ablation": args.ablation}
    if args.json:
        print(json.dumps(values, indent=1))
        return
    for name, value in values.items():
        if value is not None:
            print(f"{name.replace('_', '-')}: {json.dumps(value)}")
