"""What merging costs an encoder: schedules, metrics and proportional attention, by copy detection.

    python benchmarks/merge_accuracy.py --data PHOTOGRAPHS --output merge_accuracy.csv

Every variant embeds the same images and one altered copy of each; an image is right where it finds
its own copy among all copies. Paired with the unmerged encoder of the same precision, on the same
images. The quantized variants are calibrated with the merging in place, on images of their own.
Rows are written as they come, so that a stopped run leaves a valid file.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from regcache_deploy.data.copies import with_copies
from regcache_deploy.data.folder import load_folder
from regcache_deploy.data.images import Images
from regcache_deploy.encoders.canonical import Encoder
from regcache_deploy.encoders.load import load_model
from regcache_deploy.errors import ConfigError
from regcache_deploy.evaluation.corners import simulate
from regcache_deploy.evaluation.instances import SymmetricInstances
from regcache_deploy.evaluation.objective import Score
from regcache_deploy.evaluation.paired import compare_paired
from regcache_deploy.quantization.baselines import make_baseline
from regcache_deploy.quantization.quantizers import Bits
from regcache_deploy.quantization.settings import QuantizerSettings
from regcache_deploy.quantization.simulate import Calibration, Quantization
from regcache_deploy.work.progress import Reporter
from regcache_export.merge import Merge, MergeOptions, MergeSchedule, Metric

FLOAT = "fp32"
SCHEDULES = ("8", "(8,-1)", "13", "3:69")
FORMS: tuple[tuple[Metric, bool], ...] = (
    ("keys", False),
    ("keys", True),
    ("residual", False),
    ("residual", True),
)
"""Metric, and whether attention is proportional."""

COLUMNS: tuple[str, ...] = (
    "precision",
    "schedule",
    "metric",
    "proportional",
    "n",
    "copy_top1",
    "difference",
)
COLUMNS += ("low", "high", "p", "lost", "won", "cosine_to_float")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="natural-vit-s14")
    parser.add_argument("--pretrained", help="weights; random:SEED only shows that it runs")
    parser.add_argument("--data", type=Path, required=True, help="photographs")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--calibration-images", type=int, default=32)
    parser.add_argument("--schedules", nargs="+", default=list(SCHEDULES))
    parser.add_argument(
        "--precisions",
        nargs="+",
        type=known_precision,
        default=[FLOAT, "W8A8"],
        help="fp32, or bits as of regcache export",
    )
    parser.add_argument("--baseline", default="naive")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load_model(args.model, args.pretrained)
    wanted = args.calibration_images + args.images
    found = load_folder(args.data, model.preprocess, wanted, args.seed, reporter=Reporter())
    calibration = found.subset(slice(0, args.calibration_images))
    judged = with_copies(found.subset(slice(args.calibration_images, None)), args.seed)
    with args.output.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        facts = {
            "model": args.model,
            "baseline": args.baseline,
            "images": len(judged) // 2,
            "calibration_images": len(calibration),
            "copies": f"seed {args.seed}",
            "torch": torch.__version__,
        }
        writer.writerows(["environment", key, value] for key, value in facts.items())
        writer.writerow(COLUMNS)
        for row in measure(model.encoder, judged, calibration, args):
            writer.writerow(row)
            file.flush()
    return 0


@torch.no_grad()
def measure(
    encoder: Encoder, judged: Images, calibration: Images, args: argparse.Namespace
) -> Iterator[list[str]]:
    """One row a variant, the unmerged ones first."""
    tokens = encoder.embed(calibration.normalized(calibration.pixels))
    reference = embedded(encoder, FLOAT, tokens, judged, args)
    judge = SymmetricInstances(reference)
    alone: dict[str, Score] = {}
    for schedule, merge in variants(encoder, args.schedules):
        for precision in args.precisions:
            began = time.monotonic()
            if merge is None and precision == FLOAT:
                features = reference
            else:
                features = embedded(encoder.merging(merge), precision, tokens, judged, args)
            score = judge.score(features)
            first = alone.setdefault(precision, score)
            pair = compare_paired(first.per_image.numpy(), score.per_image.numpy(), args.seed)
            ends = [f"{v:.3f}" for v in (pair.difference, pair.low, pair.high)]
            row = [precision, schedule, merge.metric if merge else ""]
            row += [str(merge.proportional) if merge else "", str(pair.n)]
            row += [f"{100 * score.value:.3f}", *ends, f"{pair.p_value:.4g}"]
            row += [str(pair.lost), str(pair.won), f"{score.fidelity:.5f}"]
            print(*row, f"({time.monotonic() - began:.0f} s)", file=sys.stderr, flush=True)
            yield row


def embedded(
    encoder: Encoder, precision: str, tokens: Tensor, judged: Images, args: argparse.Namespace
) -> Tensor:
    """Features `[2n, E]` of the images that judge."""
    if precision == FLOAT:
        how = Calibration(encoder, Quantization())
    else:
        bits = Bits(*QuantizerSettings(bits=precision).requested_bits)
        how = make_baseline(args.baseline, bits).calibrate(encoder, tokens)
    return simulate(how, judged.batches(args.batch_size), lambda n: None)


def known_precision(text: str) -> str:
    """`fp32`, or bits as `--bits` of the commands takes them."""
    if text != FLOAT:
        try:
            QuantizerSettings(bits=text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
    return text


def variants(encoder: Encoder, schedules: list[str]) -> Iterator[tuple[str, Merge | None]]:
    """The unmerged encoder, then every schedule in every form."""
    yield "none", None
    for text in schedules:
        schedule = MergeSchedule.parse(text)
        for metric, proportional in FORMS:
            yield text, MergeOptions(schedule, metric, proportional).of(encoder.spec)


if __name__ == "__main__":
    sys.exit(main())
