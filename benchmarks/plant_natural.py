"""Plant sinks into natural weights, and let them get used to it.

    python benchmarks/plant_natural.py --data DIR --ratio 4 12 36 124 300 --output FOLDER

Writes two files per ratio and seed, `planted-rR-sS.safetensors` and `adapted-rR-sS.safetensors`:
encoders for `--model natural-vit-s14 --pretrained FILE`. They say of themselves that their sinks
are planted. Photographs: the first `--photos` of the folder in the order of the seed, which are
also the first ones that a search on the same folder and seed takes; what is behind them stays held
out. So a seed changes everything: the planted direction, the photographs, their altered copies.
"""

from __future__ import annotations

import argparse
import logging
import time
from functools import partial
from pathlib import Path

import torch
from natural_adapt import Adaptation, Lessons, adapt, prepare
from natural_sinks import Planting, Severity, plant, severity

from regcache_deploy.data.folder import load_folder
from regcache_deploy.data.images import Images
from regcache_deploy.encoders.canonical import Encoder
from regcache_deploy.encoders.encoder_file import EncoderFile, write_encoder
from regcache_deploy.encoders.load import load_model
from regcache_deploy.encoders.names import NATURAL

log = logging.getLogger(__name__)

PLANTING_PHOTOS = 48


def caution(planting: Planting, steps: int) -> str:
    """The line that every figure of such an encoder is read with."""
    used = f"got used to them in {steps} steps" if steps else "was never trained with them"
    return (
        f"natural weights with planted sinks (norm ratio {planting.ratio:g}, "
        f"seed {planting.seed}); the encoder {used}; says nothing about encoders that grew theirs"
    )


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    model = load_model(args.model)
    for seed in args.seed:
        photos = load_folder(args.data, model.preprocess, args.photos, seed)
        how = Adaptation(
            steps=args.steps, views=args.views, peak_lr=args.lr, seed=seed, half=args.half
        )
        lessons = prepare(model.encoder, photos, how) if how.steps else None
        log.info("lessons of %d photographs are ready", len(photos))
        shown = photos.normalized(photos.pixels[:PLANTING_PHOTOS])
        for ratio in args.ratio:
            planting = Planting(ratio, seed)
            planted, found = plant(model.encoder, shown, planting)
            log.info("ratio %g seed %d: %s", ratio, seed, found)
            name = f"r{ratio:g}-s{seed}.safetensors"
            write = partial(
                _write, preprocess=model.preprocess, planting=planting, seen=len(photos)
            )
            write(args.output / f"planted-{name}", planted, found, None)
            if lessons is None:
                continue
            used, after = _get_used(planted, planting, photos, lessons, how)
            write(args.output / f"adapted-{name}", used, after, how)
    return 0


def _get_used(
    planted: Encoder, planting: Planting, photos: Images, lessons: Lessons, how: Adaptation
) -> tuple[Encoder, Severity]:
    began = time.monotonic()

    def report(step: int, cls: float, patches: float) -> None:
        seconds = time.monotonic() - began
        log.info("  step %d  %.0f s  class %.4f  patches %.4f", step, seconds, cls, patches)

    encoder = adapt(planted, planting.block, photos, lessons, how, report)
    with torch.no_grad():
        tokens = encoder.embed(photos.normalized(photos.pixels[:PLANTING_PHOTOS]))
    found = severity(encoder, tokens, planting.block)
    log.info("  used to them: %s", found)
    return encoder, found


def _write(
    path: Path,
    encoder: Encoder,
    found: Severity,
    how: Adaptation | None,
    preprocess: dict[str, object],
    planting: Planting,
    seen: int,
) -> None:
    facts = {
        "photographs": seen,
        "model": NATURAL,
        "planting": planting.to_json(),
        "adaptation": how.to_json() if how else None,
        "severity": found.to_json(),
    }
    text = caution(planting, how.steps if how else 0)
    write_encoder(path, EncoderFile(encoder, preprocess, text, facts))
    log.info("%s", path)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default=NATURAL, help="a ViT without sinks of its own")
    parser.add_argument("--data", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--photos", type=int, default=100, help="how many of them")
    parser.add_argument("--ratio", type=float, nargs="+", default=[4, 12, 36, 124, 300])
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="of sinks and photographs")
    parser.add_argument("--steps", type=int, default=Adaptation.steps, help="0: planted files only")
    parser.add_argument("--views", type=int, default=Adaptation.views)
    parser.add_argument("--lr", type=float, default=Adaptation.peak_lr)
    parser.add_argument("--half", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, required=True, help="folder for the encoders")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
