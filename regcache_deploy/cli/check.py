"""Hold a bundle's graph against the rules of a runtime, without building anything."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..compat import require
from ..errors import BundleError
from ..work.json_file import json_text
from .common import add_common_arguments

if TYPE_CHECKING:
    from regcache_export.checks import Report

MAX_MODEL = 1 << 31
"""Bytes; the limit of protobuf."""

HELP = "hold a bundle's graph against TensorRT's rules, without a GPU"

EXAMPLES = """\
  regcache check runs/X/X.regcache"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `regcache check`."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="a bundle, or an .onnx file")
    parser.add_argument(
        "--target",
        choices=("tensorrt",),
        default="tensorrt",
        help="whose rules (default: tensorrt)",
    )
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the verdict. Returns 0, or BundleError's code where a rule is broken."""
    require("onnx", "export")
    from regcache_export.checks import check_file

    report = check_file(args.bundle, read_model(args.bundle))
    print(json_text(report.to_json()) if args.json else "\n".join(table(report)))
    return BundleError.exit_code if report.findings else 0


def read_model(source: Path) -> bytes:
    """The ONNX file of a bundle, as the bundle was checked, or the file itself.

    Raises:
        BundleError: neither.
    """
    from regcache_engines.bundle import MODEL, Bundle

    if source.is_dir():
        return Bundle.open(source).read(MODEL)
    if not source.is_file():
        raise BundleError(f"there is no {source}; give a bundle or an .onnx file")
    if source.stat().st_size >= MAX_MODEL:
        raise BundleError(f"{source} has 2 GiB or more, which no ONNX file can have")
    return source.read_bytes()


def table(report: Report) -> list[str]:
    """The report as lines of text."""
    lines = [f"{'block':<7}{'INT8 linears':<14}attention"]
    for block in report.blocks:
        linears = f"{block.int8_linears}/{block.linears}"
        attention = block.attention + (f" ({block.why})" if block.why else "")
        lines.append(f"{block.block:<7}{linears:<14}{attention}")
    lines.append("")
    if not report.findings:
        return [*lines, "every rule of TensorRT holds"]
    for finding in report.findings:
        lines.append(f"broken: {finding.rule}: {finding.node}: {finding.message}")
    return lines
