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
from ..options import BASELINE_NAMES, OBSERVER_NAMES, ExportOptions
from ..progress import Reporter
from .common import QUIET, add_common_arguments, add_run_arguments

HELP = "search, quantize and write an ONNX bundle (--baseline naive|ptq4vit|repqvit)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `regcache export`; their defaults are those of `ExportOptions`."""
    default = ExportOptions
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model",
        default=default.model,
        metavar="NAME",
        help="model name of open_clip, hf-hub:ORG/NAME, timm/NAME, or `demo`, the embedded one; "
        "`regcache models` lists them (default %(default)s)",
    )
    model.add_argument(
        "--pretrained",
        metavar="TAG|PATH|random[:SEED]",
        help="open_clip's tag, a checkpoint, or random weights (for structure and speed)",
    )
    model.add_argument(
        "--img-size",
        metavar="N|HxW",
        help="input size in pixels (default: the model's own)",
    )
    model.add_argument(
        "--templates",
        default=default.templates,
        metavar="openai|simple|FILE",
        help="prompts of the zero-shot head (default %(default)s)",
    )
    model.add_argument(
        "--baseline",
        default=default.baseline,
        metavar="NAME",
        help=f"quantizer: {', '.join(BASELINE_NAMES)} (default %(default)s)",
    )
    model.add_argument(
        "--bits",
        default=default.bits,
        metavar="W8A8",
        help="bits of weights and activations; only W8A8 is deployed (default %(default)s)",
    )
    model.add_argument(
        "--observer",
        default=default.observer,
        metavar="NAME",
        help=f"how naive sets its ranges: {', '.join(OBSERVER_NAMES)} (default %(default)s)",
    )

    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="images to calibrate and search on, one folder per class (default: the demo's)",
    )
    data.add_argument(
        "--eval-data", type=Path, metavar="DIR", help="images to evaluate on, laid out alike"
    )
    _add_count(data, "--limit", default.limit, "evaluate on at most N images")
    _add_count(data, "--calibration-images", default.calibration_images, "images to calibrate on")
    _add_count(data, "--search-images", default.search_images, "images to search on")

    choice = parser.add_argument_group("fix a choice instead of searching it")
    _add_count(choice, "--prefix-block", default.prefix_block, "first block that sees the prefix")
    _add_count(choice, "--prefix-count", default.prefix_count, "copies of the prefix; 0 is none")
    _add_count(choice, "--delete-count", default.delete_count, "sink tokens to delete; 0 is none")

    add_graph_arguments(parser)

    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--output", type=Path, metavar="DIR", help="result folder (default runs/MODEL-BASELINE)"
    )
    _add_count(machine, "--batch-size", default.batch_size, "images per forward pass")
    _add_count(machine, "--threads", default.threads, "CPU threads")
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
    _add_count(graph, "--batch", default.batch, "fixed batch size of the graph (default: any)")
    _add_count(graph, "--probes", default.probes, "outputs for the outlier monitor, 0 to 3")
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
    _add_count(
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
    from ..pipeline import run_export
    from ..report.terminal import print_result

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


def _add_count(
    group: argparse._ArgumentGroup, option: str, default: int | None, help_text: str
) -> None:
    shown = "" if default is None else " (default %(default)s)"
    group.add_argument(option, type=int, default=default, metavar="N", help=help_text + shown)
