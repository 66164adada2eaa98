"""Every cell of the paper's table that this machine can run, beside the published figures.

    python benchmarks/paper.py --data IMAGENET/train --eval-data IMAGENET/val --output runs/paper
    python benchmarks/paper.py --dry-run --models CLIP-B/16 --baselines naive --bits W8A8

Five encoders of RegCache's table and five supervised ones, whose own tables PTQ4ViT and RepQ-ViT
published; three baselines, three bit widths. A published figure of a baseline alone is one of its
published quantizers: hold `paper_baseline` against it. A cell that cannot be run stays empty and
says why. An interrupted run goes on where it stopped. `--dry-run` takes the first two blocks of
every encoder with random weights, a few small synthetic images and a fixed choice: it shows that
everything is in place, and its figures mean nothing.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from regcache_deploy.encoders.canonical import Encoder
from regcache_deploy.encoders.load import LoadedModel, load_model
from regcache_deploy.errors import RegCacheError
from regcache_deploy.quantization.settings import BASELINE_NAMES
from regcache_deploy.run.options import ExportOptions
from regcache_deploy.work.format import COUNTED
from regcache_deploy.work.progress import Reporter

BITS = ("W8A8", "W6A6", "W4A4")


@dataclass(frozen=True)
class PaperModel:
    """An encoder of the paper and where its weights come from by default."""

    name: str
    architecture: str
    tag: str | None
    img_size: str | None = None
    patch_size: int = 16
    classifier: bool = False


MODELS = (
    PaperModel("CLIP-B/16", "ViT-B-16-quickgelu", "openai"),
    PaperModel("OpenCLIP-B/16", "ViT-B-16", "laion2b_s34b_b88k"),
    PaperModel("SigLIP-B/16", "ViT-B-16-SigLIP", "webli"),
    PaperModel("SigLIP2-B/16", "ViT-B-16-SigLIP2", "webli"),
    PaperModel(
        "DINOv2-B/14", "timm/vit_base_patch14_dinov2", "lvd142m", img_size="224", patch_size=14
    ),
    PaperModel("ViT-S/16", "timm/vit_small_patch16_224", "augreg_in21k_ft_in1k", classifier=True),
    PaperModel("ViT-B/16", "timm/vit_base_patch16_224", "augreg_in21k_ft_in1k", classifier=True),
    PaperModel("DeiT-T/16", "timm/deit_tiny_patch16_224", "fb_in1k", classifier=True),
    PaperModel("DeiT-S/16", "timm/deit_small_patch16_224", "fb_in1k", classifier=True),
    PaperModel("DeiT-B/16", "timm/deit_base_patch16_224", "fb_in1k", classifier=True),
)

PUBLISHED = {
    ("CLIP-B/16", "naive", "W8A8"): {"baseline": 34.01, "regcache": 59.71},
    ("SigLIP-B/16", "naive", "W8A8"): {
        "baseline": 69.71,
        "prefix_only": 74.37,
        "delete_only": 42.41,
        "regcache": 74.38,
    },
    ("SigLIP2-B/16", "naive", "W8A8"): {
        "baseline": 26.04,
        "prefix_only": 23.82,
        "delete_only": 69.06,
        "regcache": 72.35,
    },
}
"""ImageNet-1k zero-shot top-1 of arXiv 2510.04547v4, as quoted by public notes on it. Figures that
are known without their baseline quantizer or model size are left out."""

BASELINE_TABLES: dict[str, dict[str, dict[str, float]]] = {
    "ptq4vit": {
        "ViT-S/16": {"W8A8": 81.00, "W6A6": 78.63},
        "ViT-B/16": {"W8A8": 84.25, "W6A6": 81.65},
        "DeiT-S/16": {"W8A8": 79.47, "W6A6": 76.28},
        "DeiT-B/16": {"W8A8": 81.48, "W6A6": 80.25},
    },
    "repqvit": {
        "ViT-S/16": {"W6A6": 80.43, "W4A4": 65.05},
        "ViT-B/16": {"W6A6": 83.62, "W4A4": 68.48},
        "DeiT-T/16": {"W6A6": 70.76, "W4A4": 57.43},
        "DeiT-S/16": {"W6A6": 78.90, "W4A4": 69.03},
        "DeiT-B/16": {"W6A6": 81.27, "W4A4": 75.61},
    },
}
"""ImageNet-1k top-1 of the baselines alone, from the READMEs of PTQ4ViT (32 calibration images) and
RepQ-ViT."""

PUBLISHED |= {
    (model, baseline, bits): {"baseline": value}
    for baseline, table in BASELINE_TABLES.items()
    for model, row in table.items()
    for bits, value in row.items()
}

CORNERS = ("fp32", "baseline", "prefix_only", "delete_only", "regcache")
PAPER_FORMS = ("paper_baseline", "paper_regcache")
"""The same with every quantizer as published, where the deployed form differs."""

DRY_DEPTH = 2
DRY_PATCHES = 5
"""In a row: PTQ4ViT's search takes minutes for a block of whole images."""

DRY: dict[str, Any] = {"calibration_images": 2, "search_images": 2, "limit": 2, "batch_size": 2}
DRY_CHOICE: dict[str, Any] = {"prefix_block": 0, "prefix_count": 4, "delete_count": 4}


def run_cell(
    args: argparse.Namespace, model: PaperModel, baseline: str, bits: str
) -> dict[str, Any]:
    """One row: our figures, or the reason why there are none; and the published ones."""
    row: dict[str, Any] = {"model": model.name, "quantizer": baseline, "bits": bits}
    try:
        row |= _measure(args, model, baseline, bits)
    except RegCacheError as error:
        row["reason"] = " ".join(str(error).split())
    for corner, value in PUBLISHED.get((model.name, baseline, bits), {}).items():
        row[f"published_{corner}"] = value
    return row


def _measure(
    args: argparse.Namespace, model: PaperModel, baseline: str, bits: str
) -> dict[str, Any]:
    if args.data is None and not args.dry_run:
        return {"reason": "no images: pass --data and --eval-data"}
    from regcache_deploy.run.search import run_search

    place = args.output / model.name.replace("/", "-")
    common: dict[str, Any] = {
        "baseline": baseline,
        "bits": bits,
        "model": model.architecture,
        "img_size": model.img_size,
        "classifier": model.classifier,
        "output": place / f"{baseline}-{bits}",
        "seed": args.seed,
        "threads": args.threads,
    }
    shallow = None
    if args.dry_run:
        common["img_size"] = str(DRY_PATCHES * model.patch_size)
        options = ExportOptions(**common, pretrained="random", **DRY, **DRY_CHOICE)
        shallow = first_blocks(
            load_model(
                options.model,
                options.pretrained,
                options.image_size,
                classifier=options.classifier,
            ),
            DRY_DEPTH,
        )
    else:
        options = ExportOptions(
            **common,
            pretrained=pretrained_of(model, dict(args.weights)),
            data=args.data,
            eval_data=args.eval_data,
            limit=args.limit,
            search_images=args.search_images,
            calibration_images=args.calibration_images,
        )
        options.check_paths()
    reporter = Reporter(quiet=not args.verbose)
    options = replace(options, two_counts=False)
    result = run_search(options, reporter, parts=place / "parts", model=shallow)
    scale = 100 if result.metric in COUNTED else 1
    config = result.config
    return {
        "metric": result.metric,
        "n": result.n_eval,
        **{corner: round(scale * result.accuracy[corner], 4) for corner in CORNERS},
        **{f"paper_{n}": round(scale * value, 4) for n, value in result.paper_form.items()},
        "choice": f"t={config.prefix_block} tau={config.prefix_count} k={config.delete_block} "
        f"deleted={config.delete_count}",
        "reason": result.caution or "",
    }


def pretrained_of(model: PaperModel, given: dict[str, str]) -> str | None:
    """The default tag, or what the user gave; a file holds the weights of the default tag."""
    weights = given.get(model.name, model.tag)
    if weights is None or not Path(weights).is_file() or model.architecture.startswith("timm/"):
        return weights
    return f"{model.tag}={weights}"


def first_blocks(model: LoadedModel, depth: int) -> LoadedModel:
    """The same encoder with its first blocks only."""
    spec = replace(model.encoder.spec, depth=depth)
    weights = {name: model.encoder.weights[name] for name in spec.weight_shapes()}
    caution = f"{model.caution or ''}; the first {depth} blocks".removeprefix("; ")
    return replace(model, encoder=Encoder(spec, weights), caution=caution)


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """All rows so far as CSV; published figures have columns of their own."""
    published = [f"published_{corner}" for corner in CORNERS[1:]]
    columns = [
        "model",
        "quantizer",
        "bits",
        "metric",
        "n",
        *CORNERS,
        *PAPER_FORMS,
        *published,
        "choice",
        "reason",
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def show(row: dict[str, Any]) -> str:
    """One line for the terminal."""
    digits = 2 if row.get("metric") in COUNTED else 4
    figures = [f"{corner} {row[corner]:.{digits}f}" for corner in CORNERS if corner in row]
    known = {k.removeprefix("published_"): v for k, v in row.items() if k.startswith("published_")}
    published = f" | published {known}" if known else ""
    text = ", ".join(figures) or "empty"
    reason = f" ({row['reason']})" if row.get("reason") else ""
    return f"{row['model']} {row['quantizer']} {row['bits']}: {text}{reason}{published}"


def weights(text: str) -> tuple[str, str]:
    name, separator, path = text.partition("=")
    if not separator or name not in {model.name for model in MODELS}:
        raise argparse.ArgumentTypeError(f"{text}: write MODEL=PATH or MODEL=TAG")
    return name, path


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [model.name for model in MODELS]
    parser.add_argument("--data", type=Path, help="ImageNet train, one folder per class")
    parser.add_argument("--eval-data", type=Path, help="ImageNet val, one folder per class")
    parser.add_argument(
        "--weights", type=weights, action="append", default=[], metavar="MODEL=PATH"
    )
    parser.add_argument("--models", nargs="+", default=names, choices=names)
    parser.add_argument("--baselines", nargs="+", default=BASELINE_NAMES, choices=BASELINE_NAMES)
    parser.add_argument("--bits", nargs="+", default=BITS, choices=BITS)
    parser.add_argument("--search-images", type=int, default=5000)
    parser.add_argument("--calibration-images", type=int, default=64)
    parser.add_argument("--limit", type=int, help="evaluate on at most N images")
    parser.add_argument("--output", type=Path, default=Path("runs/paper"))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry-run", action="store_true", help="random weights: plumbing only")
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args(argv)
    rows = []
    for model in (m for m in MODELS if m.name in args.models):
        for baseline in args.baselines:
            for bits in args.bits:
                rows.append(run_cell(args, model, baseline, bits))
                print(show(rows[-1]), flush=True)
                write_table(args.output / "table.csv", rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
