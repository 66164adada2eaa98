"""Make a zero-shot head from class names with a bundle's text tower; torch is not needed."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..work.json_file import json_text
from ..work.paths import require_writable_file
from ..work.progress import Reporter
from ..work.settings import MAX_THREADS, in_range
from .common import QUIET, add_common_arguments

HELP = "a zero-shot head from class names, by the bundle's text tower"

EXAMPLES = """\
  regcache head runs/X/X.regcache --classes classes.txt
  regcache head runs/X/X.regcache --classes cat,dog,none"""

OUTPUT = Path("head.safetensors")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `regcache head`."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder NAME.regcache")
    parser.add_argument(
        "--classes", required=True, metavar="FILE|A,B,C", help="class names: one a line, or a list"
    )
    parser.add_argument(
        "--templates",
        metavar="FILE|TEXT",
        help="prompts with {} for the class name, one a line, or a single one in quotes (default: "
        "those of the export)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=OUTPUT,
        metavar="FILE",
        help="for `regcache eval --head` and `regcache_classify --head` (default %(default)s)",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Make the head and print what it is. Returns the exit code."""
    from regcache_engines.files import atomic_write_bytes
    from regcache_engines.text import TextTower
    from regcache_engines.text_head import head_file, read_classes, read_prompts

    in_range("--threads", args.threads, 1, MAX_THREADS)
    classes = read_classes(args.classes)
    templates = None if args.templates is None else read_prompts(args.templates)
    require_writable_file(args.output, "--output")
    reporter = Reporter(quiet=args.verbosity == QUIET)
    with TextTower(args.bundle, threads=args.threads) as tower:
        used = tower.config.templates if templates is None else templates
        title = f"zero-shot head ({len(used)} templates)"
        with reporter.stage(title, len(classes)) as advance:
            data = head_file(tower, classes, used, advance)
        found = {
            "head": str(args.output),
            "classes": len(classes),
            "templates": len(used),
            "embedding": tower.output_dim,
            "precision": tower.config.precision,
            "logit_scale": tower.config.logit_scale,
        }
    atomic_write_bytes(args.output, data)
    if args.json:
        print(json_text(found))
    else:
        print(
            f"{args.output}: {found['classes']} classes, {found['templates']} templates, "
            f"{found['embedding']} numbers each; text tower in {found['precision']}"
        )
    return 0
