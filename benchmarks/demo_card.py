"""Print the figures of the model card: ``python benchmarks/demo_card.py``.

Held-out canvases, naive and repqvit W8A8 in simulation, prefix and deletion at the planted block.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor

from regcache_deploy.data.demo_images import load_demo_images
from regcache_deploy.demo.digits import CLASS_NAMES
from regcache_deploy.demo.model import load_demo
from regcache_deploy.encoders.canonical import FLOAT, Encoder
from regcache_deploy.encoders.load import load_model
from regcache_deploy.encoders.regcache import RegCache, RegCacheConfig
from regcache_deploy.quantization.baselines import make_baseline
from regcache_deploy.search.register.capture import capture, rank_candidates

CALIBRATION = 64
CHOICES = ((0, 0), (3, 0), (0, 6), (3, 5), (3, 6), (3, 8), (3, 10))
"""(tau, k~) of the rows."""


@torch.no_grad()
def register_at(encoder: Encoder, images: Tensor, block: int) -> dict[int, Tensor]:
    """The search's own register of block `block`, from images `[n, 3, H, W]`."""
    ranked = rank_candidates(encoder, images.split(32), [block], block)
    found = capture(encoder, lambda rows: images[rows], {block: ranked.by_input[block]})
    return found[block].register()


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the embedded demo encoder.")
    parser.add_argument("--model", default="demo", help="or one of its variants")
    parser.add_argument("--images", type=int, default=1000, help="held-out canvases")
    args = parser.parse_args()
    count = args.images
    model, block = load_model(args.model), int(load_demo().config["plant"]["block"])
    encoder = model.encoder
    assert model.text_head is not None
    head = model.text_head(CLASS_NAMES)
    images = load_demo_images("heldout", count, preprocess_cfg=model.preprocess)
    assert images.labels is not None
    tokens = torch.cat([encoder.embed(batch) for batch in images.batches(100)])
    search = load_demo_images("search", CALIBRATION, preprocess_cfg=model.preprocess)
    searched = torch.cat(list(search.batches(100)))
    calibration, register = encoder.embed(searched), register_at(encoder, searched, block)
    print(f"| quantizer | tau | k~ | top-1 %, n = {count} |\n|---|---|---|---|")
    for name in ("FP32", "naive", "repqvit"):
        for tau, deleted in CHOICES:
            config = RegCacheConfig(block, tau, block, deleted)
            regcache = None if config.is_empty else RegCache(config, register)
            found = None
            if name != "FP32":
                found = make_baseline(name).calibrate(encoder, calibration, regcache=regcache)
            run, cache = (encoder, regcache) if found is None else (found.encoder, found.regcache)
            numerics = FLOAT if found is None else found.numerics()
            after = [
                run.run_blocks(part, regcache=cache, numerics=numerics)
                for part in tokens.split(100)
            ]
            features = F.normalize(run.pool(torch.cat(after)), dim=-1)
            top1 = (features @ head.T).argmax(-1).eq(images.labels).double().mean()
            print(f"| {name} | {tau} | {deleted} | {100 * float(top1):.1f} |", flush=True)


if __name__ == "__main__":
    main()
