"""Search a RegCache for an encoder, quantize it, and write an ONNX bundle that runs in INT8."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields
from pathlib import Path

from regcache_export.fold_names import SWITCHABLE
from regcache_export.targets import TARGETS

from ..compat import import_open_clip, require
from ..run.options import ExportOptions
from ..work.progress import Reporter
from .common import QUIET, add_common_arguments, add_run_arguments
from .shared import add_choice_arguments, add_count, add_data_arguments, add_model_arguments

HELP = "search, quantize and write an ONNX bundle (--baseline naive|ptq4vit|repqvit)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `regcache export`; their defaults are those of `ExportOptions`."""
    default = ExportOptions
    add_model_arguments(parser)
    add_data_arguments(parser)
    add_choice_arguments(parser)
    add_graph_arguments(parser)

    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--output", type=Path, metavar="DIR", help="result folder (default runs/MODEL-BASELINE)"
    )
    add_count(machine, "--batch-size", default.batch_size, "images per forward pass")
    add_count(machine, "--threads", default.threads, "CPU threads")
    add_run_arguments(parser)
    add_common_arguments(parser)


def add_graph_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what decides the form of the graph."""
    default = ExportOptions
    graph = parser.add_argument_group("graph")
    graph.add_argument(
        "--target",
        default=default.target,
        metavar="NAME",
        help=f"form of the graph: {', '.join(TARGETS)} (default %(default)s)",
    )
    graph.add_argument(
        "--bake-preprocess",
        metavar="nchw|nhwc",
        help="the graph takes uint8 pixels [B, 3, H, W] or [B, H, W, 3], mean and std folded in",
    )
    add_count(graph, "--batch", default.batch, "fixed batch size of the graph (default: any)")
    add_count(graph, "--probes", default.probes, "outputs for the outlier monitor, 0 to 3")
    graph.add_argument(
        "--keep-float",
        default=default.keep_float,
        metavar="LAYERS",
        help="linears to leave in float, by comma (blocks.7.fc2), or `auto` under --budget",
    )
    graph.add_argument(
        "--budget",
        type=float,
        default=default.budget,
        metavar="X",
        help="loss of the search objective that --keep-float auto tolerates (default %(default)s)",
    )
    graph.add_argument(
        "--reduce-range",
        action=argparse.BooleanOptionalAction,
        default=default.reduce_range,
        help="7-bit weights: exact on CPUs without VNNI, whose u8s8 products saturate",
    )
    graph.add_argument(
        "--strict-paper",
        action=argparse.BooleanOptionalAction,
        default=default.strict_paper,
        help="every quantizer as published, attention's too: slow, to measure what that costs",
    )
    graph.add_argument(
        "--no-fold",
        default=default.no_fold,
        metavar="NAMES",
        help=f"exact folds to leave out, by comma: {', '.join(SWITCHABLE)}",
    )
    graph.add_argument(
        "--balance",
        action=argparse.BooleanOptionalAction,
        default=default.balance,
        help="balance values against out_proj per channel before calibration",
    )
    add_count(
        graph,
        "--certificate-images",
        default.certificate_images,
        "calibration images that travel in the bundle, for `regcache verify`",
    )


def run(args: argparse.Namespace) -> int:
    """Run the export and print what it found. Returns the exit code."""
    options = ExportOptions(**{f.name: getattr(args, f.name) for f in fields(ExportOptions)})
    options.check_paths()
    if args.dry_run:
        print_configuration(options, as_json=args.json)
        return 0
    _require_extras()
    from ..report.terminal import print_result
    from ..run.export import run_export

    result = run_export(options, Reporter(quiet=args.verbosity == QUIET))
    print_result(result, as_json=args.json)
    return 0


def print_configuration(options: ExportOptions, as_json: bool) -> None:
    """Print the resolved configuration on stdout; the text form is a valid `--config` file."""
    values = options.to_json()
    if as_json:
        print(json.dumps(values, indent=1))
        return
    for name, value in values.items():
        if value is not None:
            # JSON scalars are YAML scalars, with the quotes that awkward strings need.
            sys.stdout.write(f"{name.replace('_', '-')}: {json.dumps(value)}\n")


def _require_extras() -> None:
    """Say now what is not installed, not after minutes of searching."""
    import_open_clip()
    require("onnx", "export")
    require("onnxruntime", "cpu")
