"""Embed a folder, a list or shards of images with a bundle, into the files of clip-retrieval.

Any scheduler shares the work: give each task another --partition of the same command.
A killed run goes on with the parts that are not there yet.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..errors import ConfigError
from ..work.format import counted
from ..work.json_file import json_text
from ..work.progress import Reporter
from ..work.settings import MAX_THREADS, in_range
from .arguments import print_arguments
from .common import QUIET, add_common_arguments, add_workers_arguments, require_workers

HELP = "embed a collection of images, for autofaiss and clip-retrieval"

EXAMPLES = """\
  regcache embed runs/X/X.regcache --data DIR --output embeddings
  regcache embed runs/X/X.regcache --data DIR --output embeddings \\
      --partition 0/4                               # one of four"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `regcache embed`."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder NAME.regcache")
    parser.add_argument(
        "--data",
        required=True,
        metavar="DATA",
        help="a folder of images at any depth, a list of them (LIST.txt), or webdataset shards "
        "(DIR, x-{000..012}.tar, or the same as a URL of fsspec: s3://BUCKET/...)",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="result folder")
    parser.add_argument(
        "--partition",
        default="0/1",
        metavar="I/N",
        help="take every N-th part, from part I on; I counts from 0 (default %(default)s)",
    )
    parser.add_argument(
        "--part-images",
        type=int,
        default=10_000,
        metavar="N",
        help="images of one part of a folder or list; a shard is a part (default %(default)s)",
    )
    parser.add_argument(
        "--metadata",
        default="parquet",
        metavar="FORMAT",
        help="parquet (needs pyarrow) or jsonl (default %(default)s)",
    )
    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--engine",
        default="onnxruntime",
        metavar="NAME",
        help="onnxruntime, openvino, cuda, tensorrt_ep, tensorrt_rtx_ep, tensorrt or tensorrt_rtx "
        "(default %(default)s)",
    )
    machine.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="images per pass (default 32)"
    )
    machine.add_argument("--threads", type=int, metavar="N", help="CPU threads of the engine")
    add_workers_arguments(machine, "processes")
    parser.add_argument(
        "--dry-run",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="check the options, print the resolved configuration, and stop",
    )
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Embed, and print how many and how fast. Returns the exit code."""
    partition = parse_partition(args.partition)
    for name, low, high in (
        ("part_images", 1, None),
        ("batch_size", 1, None),
        ("threads", 1, MAX_THREADS),
        ("decoders", 0, MAX_THREADS),
    ):
        in_range(f"--{name.replace('_', '-')}", getattr(args, name), low, high)
    require_workers(args.workers)
    from ..evaluation.engines import ENGINES

    if args.engine not in ENGINES:
        raise ConfigError(f"--engine {args.engine}: take one of {', '.join(ENGINES)}")
    if args.dry_run:
        print_arguments(args)
        return 0
    from ..run.embed import embed
    from ..run.embed_parts import EmbedOptions

    options = EmbedOptions(
        bundle=args.bundle,
        data=args.data,
        output=args.output,
        partition=partition,
        part_images=args.part_images,
        metadata=args.metadata,
        engine=args.engine,
        batch_size=args.batch_size,
        threads=args.threads,
        decoders=args.decoders,
        workers=args.workers,
    )
    found = embed(options, Reporter(quiet=args.verbosity == QUIET))
    if args.json:
        print(json_text(found))
        return 0
    rate = found["images_per_second"]
    speed = "nothing was left to do" if rate is None else f"{rate:.1f} images/s in this run"
    sys.stdout.write(
        f"{found['output']}: {counted(found['images'], 'image')} in "
        f"{counted(found['parts'], 'part')}, "
        f"{found['unreadable']} unreadable; {speed}\n"
    )
    return 0


def parse_partition(text: str) -> tuple[int, int]:
    """`3/8` -> 3 and 8.

    Raises:
        ConfigError: other words, or an index that is not below the count.
    """
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ConfigError(f"--partition {text}: take I/N with 0 <= I < N, for example 0/8")
    return int(index), int(count)
