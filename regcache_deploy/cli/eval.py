"""Evaluate a bundle, its simulation, its quantizer alone and FP32 on the same images."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..errors import ConfigError
from ..work.paths import require_writable_file
from ..work.progress import Reporter
from ..work.settings import MAX_THREADS, check_seed, in_range
from .arguments import print_arguments
from .common import (
    QUIET,
    add_common_arguments,
    add_device_argument,
    add_run_arguments,
    add_workers_arguments,
    check_bundle,
    load_libraries,
    require_workers,
)

HELP = "accuracy, retrieval or fidelity of a bundle, on any engine"

EXAMPLES = """\
  regcache eval runs/X/X.regcache --on fp32,onnxruntime --data DIR
  regcache eval runs/X/X.regcache --images cat.jpg dog.jpg
  regcache eval runs/X/X.regcache --data DIR --task instances"""

TASKS = ("auto", "fidelity", "instances", "knn", "linear_probe", "retrieval")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `regcache eval`."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder NAME.regcache")
    parser.add_argument(
        "--on",
        default="onnxruntime",
        metavar="LIST",
        help="what to evaluate: fp32, baseline (the quantizer without RegCache), simulated, or an "
        "engine: onnxruntime, openvino, cuda, tensorrt_ep, tensorrt_rtx_ep, tensorrt, tensorrt_rtx;"
        " the first one is what the others are compared with (default %(default)s)",
    )
    parser.add_argument(
        "--plan",
        type=Path,
        metavar="DIR",
        help="folder of plan.json, for fp32, baseline, simulated (default: beside the bundle)",
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--images", type=Path, nargs="+", metavar="FILE", help="name the classes of single images"
    )
    data.add_argument(
        "--data",
        metavar="DATA",
        help="a folder of class folders or of images, webdataset shards (DIR, x-{000..012}.tar), "
        "torchvision:NAME:ROOT, or demo",
    )
    data.add_argument(
        "--transfer", nargs="+", default=[], metavar="DATA", help="more data sets: one table of all"
    )
    data.add_argument(
        "--task",
        default="auto",
        choices=TASKS,
        metavar="TASK",
        help="auto (default) is zero-shot with labels and a head, else fidelity; instances needs "
        "no labels: does an image find its own altered copy; knn and linear_probe learn from "
        "--train-data; retrieval takes --data as COCO_DATA_ROOT",
    )
    data.add_argument("--train-data", metavar="DATA", help="labelled images for knn, linear_probe")
    data.add_argument("--captions", type=Path, metavar="FILE", help="COCO captions, for retrieval")
    data.add_argument(
        "--head",
        type=Path,
        metavar="FILE",
        help="classes of a file of `regcache head`, in place of the bundle's own",
    )
    data.add_argument(
        "--templates",
        default="openai",
        metavar="openai|simple|FILE",
        help="prompts for class names that the bundle's head does not have (default %(default)s)",
    )
    data.add_argument("--limit", type=int, metavar="N", help="at most N images of a data set")
    data.add_argument(
        "--top", type=int, default=5, metavar="K", help="classes per image (default %(default)s)"
    )
    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="images per pass (default 32)"
    )
    machine.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    add_device_argument(machine, "of fp32, baseline and simulated")
    add_workers_arguments(machine, "threads")
    machine.add_argument(
        "--keep",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep the records beside the bundle, where `regcache report` finds them",
    )
    machine.add_argument("--csv", type=Path, metavar="FILE", help="write the records as CSV, too")
    add_run_arguments(parser)
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate and print. Returns the exit code."""
    _check(args)
    if args.dry_run:
        print_arguments(args)
        return 0
    check_bundle(args.bundle)
    reporter = Reporter(quiet=args.verbosity == QUIET)
    from ..evaluation.bundle_evaluation import Session
    from ..evaluation.runner import IN_TORCH
    from ..evaluation.runners import parse_runners
    from ..report.evaluation import keep_records, print_images, print_records, write_csv

    names = parse_runners(args.on)
    if set(IN_TORCH) & set(names):
        load_libraries(reporter)
    session = Session(
        args.bundle,
        names,
        reporter,
        plan_folder=args.plan,
        head_file=args.head,
        templates=args.templates,
        batch_size=args.batch_size,
        threads=args.threads,
        decoders=args.decoders,
        workers=args.workers,
        seed=args.seed,
        limit=args.limit,
        device=args.device,
    )
    with session:
        if args.images:
            print_images(session, session.images(args.images, args.top), args.json)
            return 0
        if args.task == "retrieval":
            records = session.retrieve(Path(args.data), args.captions)
        else:
            records = []
            for data in (args.data, *args.transfer):
                records += session.evaluate(data, args.task, args.train_data)
        try:
            print_records(session, records, args.json)
            sys.stdout.flush()
        finally:  # a closed pipe takes no file with it, and a full disk no text
            if args.csv is not None:
                write_csv(args.csv, session, records)
            if args.keep:
                keep_records(session, records, args.data)
    return 0


def _check(args: argparse.Namespace) -> None:
    if bool(args.images) == bool(args.data):
        raise ConfigError("pass either --images FILE... or --data DATA")
    if args.images and args.transfer:
        raise ConfigError("--transfer goes with --data")
    if args.images and args.csv:
        raise ConfigError("--csv goes with --data; --images has no records to write")
    if args.task == "retrieval" and args.transfer:
        raise ConfigError("--transfer does not go with --task retrieval")
    _refuse_unread(args)
    for name in ("limit", "top", "batch_size", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            option = name.replace("_", "-")
            raise ConfigError(f"--{option} {value} is out of range: take at least 1")
    in_range("--decoders", args.decoders, 0, MAX_THREADS)
    require_workers(args.workers)
    check_seed(args.seed)
    if args.csv is not None:
        require_writable_file(args.csv, "--csv")


def _refuse_unread(args: argparse.Namespace) -> None:
    """Raise ConfigError where the task, or --images, would not read an option."""
    if args.images:
        read_by = {"task": "--data", "limit": "--data", "templates": "--data"}
    else:
        read_by = {"top": "--images"}
        if args.task in ("fidelity", "instances", "retrieval"):
            read_by["head"] = "--task auto or --images"
        if args.task != "auto":
            read_by["templates"] = "--task auto"
    if args.images or args.task not in ("knn", "linear_probe"):
        read_by["train_data"] = "--task knn or linear_probe"
    if args.images or args.task != "retrieval":
        read_by["captions"] = "--task retrieval"
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    for name, reader in read_by.items():
        if getattr(args, name) != parser.get_default(name):
            raise ConfigError(
                f"--{name.replace('_', '-')} goes with {reader}, which alone reads it"
            )
