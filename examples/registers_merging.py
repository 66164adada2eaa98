"""Train a small ViT with four registers, merge its tokens, and see what that costs and gives.

    python examples/registers_merging.py                    # handwritten digits of scikit-learn
    python examples/registers_merging.py --cifar10 FOLDER   # holds cifar-10-batches-py

The table of the README of RegToMe, in small: unmerged, r = 16 and (16,-1), merged off the shelf,
after a training without merging. Here a schedule takes the same share of the patches as 16 does of
196 in each of 12 blocks. Every row is measured in ONNX Runtime: accuracy on the test images, images
a second in turns with all other rows, in float and in INT8 (naive quantizer, calibrated with the
merging in place). Needs the extras `search`, `export` and `cpu`; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from regcache_deploy.bench.subjects import float_plan
from regcache_deploy.bench.timing import Samples, interleave
from regcache_deploy.compat import import_torchvision
from regcache_deploy.encoders.canonical import Encoder
from regcache_deploy.encoders.timm_vit import from_timm
from regcache_deploy.errors import DataError, RegCacheError
from regcache_deploy.quantization.baselines import make_baseline
from regcache_deploy.quantization.plan import make_plan
from regcache_engines.load import load_engine
from regcache_export.graph import build_model, serialize
from regcache_export.merge import MergeOptions, MergeSchedule
from regcache_export.plan import Plan
from regcache_export.spec import EncoderSpec
from regcache_export.targets import GraphOptions

SIDE, PATCH, REGISTERS = 32, 4, 4

PUBLISHED = {"none": (76.81, 571.25), "16": (74.23, 997.39), "(16,-1)": (69.43, 1414.78)}
"""Schedule -> accuracy and images/s that RegToMe publishes for its ViT-S/16. Its README says
ImageNet-1k on a V100, its code trains on CIFAR-10 and names a P100."""

PUBLISHED_SHARE = 16 * 12 / 196

CALIBRATION_IMAGES = 64


@dataclass(frozen=True)
class Split:
    """Images `[n, 3, 32, 32]`, normalized, and int64 labels `[n]`."""

    images: Tensor
    labels: Tensor


def digits() -> tuple[Split, Split]:
    """1297 digits to train on, 500 to test on: 8 x 8 scans, enlarged; about a pixel a patch."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    images = torch.from_numpy(found.images).float()[order, None] / 8 - 1
    images = F.interpolate(images, size=(SIDE, SIDE), mode="bilinear").expand(-1, 3, -1, -1)
    labels = torch.from_numpy(found.target).long()[order]
    return Split(images[:-500], labels[:-500]), Split(images[-500:], labels[-500:])


def cifar10(folder: Path) -> tuple[Split, Split]:
    """Raises DataError where the folder holds no CIFAR-10."""
    from torchvision.datasets import CIFAR10

    try:
        parts = [CIFAR10(str(folder), train=train, download=False) for train in (True, False)]
    except RuntimeError as error:
        raise DataError(f"--cifar10 {folder}: {error}") from error

    def split(part: Any) -> Split:
        images = torch.from_numpy(part.data).permute(0, 3, 1, 2).float() / 127.5 - 1
        return Split(images, torch.tensor(part.targets))

    return split(parts[0]), split(parts[1])


def train(model: torch.nn.Module, data: Split, args: argparse.Namespace) -> None:
    """AdamW with a cosine schedule; images are shifted by up to two pixels."""
    generator = torch.Generator().manual_seed(args.seed)
    steps = args.epochs * (len(data.labels) // args.batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=max(steps, 2))
    model.train()
    for step in range(steps):
        rows = torch.randint(len(data.labels), (args.batch,), generator=generator)
        dy, dx = torch.randint(-2, 3, (2,), generator=generator).tolist()
        images = torch.roll(data.images[rows], (dy, dx), (2, 3))
        loss = F.cross_entropy(model(images), data.labels[rows], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step} of {steps}: loss {loss.item():.3f}", file=sys.stderr, flush=True)
    model.eval()


def scaled(published: str, spec: EncoderSpec) -> str:
    """A published schedule for this encoder: the same share of its patches."""
    rate = round(PUBLISHED_SHARE * spec.num_patches / spec.depth)
    return published.replace("16", str(rate))


@torch.no_grad()
def plans(encoder: Encoder, data: Split) -> dict[tuple[str, str], Plan]:
    """(precision, published schedule) -> plan."""
    tokens, found = encoder.embed(data.images[:CALIBRATION_IMAGES]), dict[tuple[str, str], Plan]()
    for name in PUBLISHED:
        text = "0" if name == "none" else scaled(name, encoder.spec)
        merge = MergeOptions(MergeSchedule.parse(text)).of(encoder.spec)
        plan = make_plan(make_baseline("naive").calibrate(encoder.merging(merge), tokens))
        found["INT8", name] = plan
        found["FP32", name] = replace(float_plan(plan), merge=merge)
    return found


def measure(
    made: dict[tuple[str, str], Plan], data: Split, args: argparse.Namespace
) -> tuple[dict[tuple[str, str], float], Samples]:
    """Accuracy of every file on all test images, and its time for one batch, in turns."""
    accuracy, runs = dict[tuple[str, str], float](), dict[str, Callable[[], Any]]()
    images = data.images.numpy()
    batch = np.ascontiguousarray(images[: args.infer_batch])
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        for key, plan in made.items():
            path = Path(scratch) / f"{len(runs)}.onnx"
            options = GraphOptions(target="onnxruntime")
            path.write_bytes(serialize(build_model(plan, options=options)))
            engine = stack.enter_context(load_engine(path, threads=args.threads))
            parts = np.array_split(images, max(1, len(images) // args.infer_batch))
            logits = np.concatenate([engine.infer(np.ascontiguousarray(p)) for p in parts])
            accuracy[key] = float((logits.argmax(axis=1) == data.labels.numpy()).mean())
            runs[" ".join(key)] = partial(engine.infer, batch)
        samples = interleave(runs, args.rounds, warmup=2, turn_ms=30, pause=0.005)
    return accuracy, samples


def table(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Train, merge, measure: one row a precision and schedule."""
    import_torchvision()
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(args.seed)
    training, test = cifar10(args.cifar10) if args.cifar10 else digits()
    test = Split(test.images[: args.limit], test.labels[: args.limit])
    model = VisionTransformer(
        img_size=SIDE,
        patch_size=PATCH,
        num_classes=10,
        embed_dim=args.width,
        depth=args.depth,
        num_heads=args.width // 32,
        mlp_ratio=4,
        reg_tokens=REGISTERS,
    )
    # so small an image has most of its content in where its strokes are
    assert model.pos_embed is not None
    torch.nn.init.normal_(model.pos_embed, std=0.3)
    began = time.monotonic()
    train(model, training, args)
    print(f"trained in {time.monotonic() - began:.0f} s", file=sys.stderr)
    encoder = from_timm(model)
    made = plans(encoder, training)
    accuracy, samples = measure(made, test, args)
    rows = []
    for (precision, name), value in accuracy.items():
        ratio = samples.ratio(f"{precision} none", f"{precision} {name}")
        merge, (published, speed) = made[precision, name].merge, PUBLISHED[name]
        rows.append(
            {
                "precision": precision,
                "schedule": "none" if name == "none" else scaled(name, encoder.spec),
                "tokens_at_the_end": encoder.spec.num_tokens - sum(merge.counts if merge else ()),
                "accuracy": round(100 * value, 2),
                "n": len(test.labels),
                "images_per_s": round(
                    args.infer_batch / samples.percentile(f"{precision} {name}", 50) * 1e3, 1
                ),
                "speedup": round(ratio.value, 3),
                "speedup_low": round(ratio.low, 3),
                "speedup_high": round(ratio.high, 3),
                "published_schedule": name,
                "published_accuracy": published,
                "published_images_per_s": speed,
                "published_speedup": round(speed / PUBLISHED["none"][1], 2),
            }
        )
    return sorted(rows, key=lambda row: row["precision"])


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cifar10", type=Path, help="folder that holds cifar-10-batches-py")
    parser.add_argument("--width", type=int, default=64, help="a multiple of 32")
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--limit", type=int, help="test on the first N images")
    parser.add_argument("--infer-batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="also write the rows as CSV")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        rows = table(args)
    except RegCacheError as error:
        print(f"registers_merging: error: {error}", file=sys.stderr)
        return error.exit_code
    out = args.output.open("w", newline="") if args.output else sys.stdout
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    if args.output:
        out.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
