"""Say what is in a bundle, or how two differ; torch and onnx are not needed."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from ..errors import ConfigError
from ..work.json_file import json_text
from .common import add_common_arguments

HELP = "what is in a bundle; with two, what differs"

EXAMPLES = """\
  regcache inspect runs/X/X.regcache
  regcache inspect runs/X/X.regcache runs/Y/Y.regcache"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `regcache inspect`."""
    parser.add_argument(
        "bundle",
        type=Path,
        nargs="+",
        metavar="BUNDLE",
        help="one or two bundles, or folders of runs that hold one",
    )
    add_common_arguments(parser)


def _width() -> int | None:
    """Columns of the window; None for a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def run(args: argparse.Namespace) -> int:
    """Print the facts. Returns the exit code."""
    if len(args.bundle) > 2:
        raise ConfigError("inspect takes one bundle, or two to compare")
    from ..report.inspection import inspect_bundle
    from ..report.inspection_text import difference_lines, differences, lines_of

    first, *others = (inspect_bundle(path) for path in args.bundle)
    if not others:
        print(json_text(first) if args.json else "\n".join(lines_of(first, _width())))
        return 0
    second = others[0]
    found = differences(first, second)
    if args.json:
        print(json_text({"a": first, "b": second, "differences": found}))
    else:
        print("\n".join(difference_lines(first, second, found)))
    return 0
