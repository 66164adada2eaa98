"""Write a bundle in the layout of another program: immich, or transformers.js."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..compat import require
from ..work.paths import require_writable
from .common import add_common_arguments

HELP = "a bundle in immich's or transformers.js' layout"

EXAMPLES = """\
  regcache pack runs/X/X.regcache --layout transformers DIR"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `regcache pack`."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder NAME.regcache")
    parser.add_argument(
        "--layout", required=True, metavar="immich|transformers", help="whose layout"
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="result folder")
    parser.add_argument(
        "--replace",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="replace what is in the folder",
    )
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Write the folder and print what is in it. Returns the exit code."""
    require("onnx", "export")
    from regcache_engines.bundle import Bundle
    from regcache_export.pack import pack_bundle

    require_writable(args.folder, "DIR")
    bundle = Bundle.open(args.bundle)
    names = pack_bundle(bundle, args.layout, args.folder, args.replace)
    if args.json:
        print(json.dumps({"folder": str(args.folder), "layout": args.layout, "files": names}))
    else:
        print("\n".join(str(args.folder / name) for name in names))
    return 0
