"""List the encoders that `--model` takes, with what matters for deployment."""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys

from ..errors import ConfigError
from ..work.progress import Reporter
from .common import QUIET, add_common_arguments

HELP = "list supported encoders: tokens, head size, GFLOPs"


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
    from ..compat import import_open_clip

    import_open_clip()
    from ..encoders.catalogue import describe
    from ..run.survey import open_clip_architectures, timm_architectures

    names = open_clip_architectures() + timm_architectures()
    chosen = [n for n in names if fnmatch.fnmatchcase(n.lower(), args.pattern.lower())]
    if not chosen:
        raise ConfigError(f"no encoder is named like '{args.pattern}'; try '*{args.pattern}*'")
    entries = []
    with Reporter(quiet=args.verbosity == QUIET).stage("reading structures", len(chosen)) as step:
        for name in chosen:
            entries.append(describe(name))
            step()
    if not args.refused:
        entries = [entry for entry in entries if entry.refusal is None]
    if args.json:
        print(json.dumps([entry.to_json() for entry in entries], indent=1))
        return 0
    print_table(entries)
    return 0


def print_table(entries) -> None:  # type: ignore[no-untyped-def]
    """One line per encoder."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for title in ("--model", "image", "tokens", "special", "head", "pool", "GFLOPs", "M params"):
        table.add_column(title, no_wrap=title == "--model")
    table.add_column("TensorRT INT8 attention")
    for e in entries:
        if e.refusal is not None:
            table.add_row(e.name, *[""] * 7, f"not supported: {e.refusal}")
            continue
        table.add_row(
            e.name,
            f"{e.image_size[0]}x{e.image_size[1]}",
            str(e.tokens),
            str(e.special_tokens),
            str(e.head_dim),
            e.pool,
            f"{e.gflops:.1f}",
            f"{e.parameters / 1e6:.0f}",
            "fuses" if e.fuses_int8_attention else "no",
        )
    Console(width=None if sys.stdout.isatty() else 130, highlight=False).print(table)
