"""Gather the pictures and tables of a search in one HTML page that opens offline."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from .common import add_common_arguments

HELP = "one self-contained HTML page of a finished search"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `regcache report`."""
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="folder of `regcache search`")
    parser.add_argument(
        "--output", type=Path, metavar="FILE.html", help="page (default RUN/report.html)"
    )
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Write the page and print where it is. Returns the exit code."""
    from ..report.document import load_document
    from ..report.html import write_page

    output = args.output or args.run_folder / "report.html"
    write_page(args.run_folder, load_document(args.run_folder), output)
    print(json.dumps({"report": str(output)}) if args.json else output)
    return 0
