"""Options that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..options import BASELINE_NAMES, OBSERVER_NAMES, ExportOptions


def add_model_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add encoder and quantizer; returns their group, for more of them."""
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
        metavar="TAG|PATH|TAG=PATH|random[:SEED]",
        help="open_clip's tag, a checkpoint (with TAG= of a tag's weights, for its activation and "
        "preprocessing), or random weights (for structure and speed)",
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
        help="bits of weights and activations; below 8, codes in INT8 (default %(default)s)",
    )
    add_observer_argument(model)
    return model


def add_observer_argument(group: argparse._ActionsContainer) -> None:
    """Add how `naive` sets the range of an activation; `options.check_observer_of` checks it."""
    group.add_argument(
        "--observer",
        default=ExportOptions.observer,
        metavar="NAME",
        help=f"how naive sets its ranges: {', '.join(OBSERVER_NAMES)} (default %(default)s)",
    )


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the images and how many of them."""
    default = ExportOptions
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
    add_count(data, "--limit", default.limit, "evaluate on at most N images")
    add_count(data, "--calibration-images", default.calibration_images, "images to calibrate on")
    add_count(data, "--search-images", default.search_images, "images to search on")


def add_choice_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the numbers of RegCache that a user may fix."""
    default = ExportOptions
    choice = parser.add_argument_group("fix a choice instead of searching it")
    add_count(choice, "--prefix-block", default.prefix_block, "first block that sees the prefix")
    add_count(choice, "--prefix-count", default.prefix_count, "copies of the prefix; 0 is none")
    add_count(choice, "--delete-count", default.delete_count, "sink tokens to delete; 0 is none")
    add_count(
        choice,
        "--range-delete-count",
        default.range_delete_count,
        "sink tokens absent while ranges are set; those that are not deleted saturate "
        "(alone: --delete-count is searched; with --delete-count alone: the same)",
    )


def add_count(
    group: argparse._ArgumentGroup, option: str, default: int | None, help_text: str
) -> None:
    """Add a whole number, its default in the help where it has one."""
    shown = "" if default is None else " (default %(default)s)"
    group.add_argument(option, type=int, default=default, metavar="N", help=help_text + shown)
