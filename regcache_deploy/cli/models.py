"""List the encoders that `--model` takes, with what matters for deployment."""

from __future__ import annotations

import argparse
import fnmatch
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..encoders.library_names import open_clip_names, timm_names
from ..encoders.names import TIMM
from ..errors import ConfigError
from ..work.json_file import json_text
from ..work.progress import Reporter
from .common import QUIET, add_common_arguments, load_libraries

if TYPE_CHECKING:
    from ..encoders.catalogue import Entry

log = logging.getLogger(__name__)

HELP = "list supported encoders: tokens, head size, GFLOPs"

EXAMPLES = """\
  regcache models 'ViT-B*'
  regcache models 'timm/*dinov2*' --refused"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `regcache models`."""
    parser.add_argument(
        "pattern",
        nargs="?",
        default="*",
        metavar="PATTERN",
        help="names to list, e.g. 'ViT-B*' or 'timm/*dinov2*' (default: all)",
    )
    parser.add_argument(
        "--refused",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="list the unsupported ones, too, each with the feature that keeps it out",
    )
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the table on stdout. Returns 0; a pattern that fits nothing is a usage mistake."""
    reporter = Reporter(quiet=args.verbosity == QUIET)
    written = names_without_import()
    if written and not fitting(args.pattern, written):
        raise none_fits(args.pattern)  # without the seconds that torch takes to import
    load_libraries(reporter)
    from ..encoders.catalogue import describe
    from ..run.survey import open_clip_architectures, timm_architectures

    names = open_clip_architectures() + timm_architectures()
    chosen = fitting(args.pattern, names)
    if not chosen:
        raise none_fits(args.pattern)
    entries = []
    with reporter.stage("reading structures", len(chosen)) as step:
        for name in chosen:
            entries.append(describe(name))
            step()
    if not args.refused:
        entries = [entry for entry in entries if entry.refusal is None]
    if not entries:
        some = f"the {len(chosen)} encoders named" if len(chosen) > 1 else "the one encoder named"
        log.warning("%s like '%s': none is supported; --refused says why", some, args.pattern)
    if args.json:
        print(json_text([entry.to_json() for entry in entries]))
        return 0
    print_table(entries)
    return 0


def names_without_import() -> list[str]:
    """At least all names of both libraries; empty where their files cannot be read."""
    open_clip, timm = open_clip_names(), timm_names()
    if open_clip is None or timm is None:
        return []
    return [*open_clip, *(TIMM + name for name in timm)]


def fitting(pattern: str, names: Sequence[str]) -> list[str]:
    return [name for name in names if fnmatch.fnmatchcase(name.lower(), pattern.lower())]


def none_fits(pattern: str) -> ConfigError:
    return ConfigError(f"no encoder is named like '{pattern}'; try '*{pattern}*'")


WIDE = 105
"""Columns of a terminal from which every column of the table fits beside the longest name."""


def print_table(entries: Sequence[Entry]) -> None:
    """One line per encoder; a narrow terminal gets what decides about size and speed."""
    from ..work.terminal import add_row, new_table, place, prose, show, stdout_console

    console = stdout_console()
    wide = console.width >= WIDE
    heads = ["--model", "image", "tokens", "GFLOPs", "M\nparams"]
    if wide:
        heads += ["special\ntokens", "head", "pool", "TensorRT\nINT8 attention"]
    table = new_table(heads)
    for e in entries:
        if e.refusal is not None:
            continue
        height, width = e.image_size
        cells = [e.name, f"{height}" if height == width else f"{height}x{width}", f"{e.tokens}"]
        cells += [f"{e.gflops:.1f}", f"{e.parameters / 1e6:.0f}"]
        if wide:
            fuses = "fuses" if e.fuses_int8_attention else "no"
            cells += [f"{e.special_tokens}", f"{e.head_dim}", e.pool, fuses]
        add_row(table, *cells)
    if table.row_count:
        show(console, "", table)
        console.print()
        if not wide:
            prose(
                console,
                f"Special tokens, head size, pooling and TensorRT: in a window of {WIDE} columns, "
                "or with --json.",
            )
    for e in entries:
        if e.refusal is not None:
            place(console, f"{e.name}: not supported: {e.refusal}")
