"""Train the demo encoder and write its weights: ``python -m regcache_deploy.demo.train``.

One stage, from scratch: the sink mechanism is in place from the first step (``planting.enforce``
after every optimizer step), so the later blocks learn with sinks that attention rests on. Losses:
cross entropy of the image-text logits over the 100 prompts, two throw-away heads for the tens and
the ones digit, and a binary cross entropy that teaches the mark unit which patches are empty.
A part of the patches is dropped in every step, sinks never: the encoder has to stand the loss of
ordinary patches, and the step gets cheaper.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import planting
from .digits import CANVAS, CLASS_NAMES, TEMPLATES, render_canvases
from .model import CONTEXT_LENGTH, DemoModel, assemble, build_clip, build_vocabulary, tokenize
from .planting import Plant

log = logging.getLogger(__name__)

PATCH = 8
WIDTH = 192


@dataclass(frozen=True)
class Settings:
    """Everything that decides the weights, besides the code and the machine's arithmetic."""

    seed: int = 0
    threads: int = 2
    pool: int = 25600
    steps: int = 1400
    batch: int = 64
    peak_lr: float = 1.2e-3
    weight_decay: float = 0.05
    warmup: float = 0.08
    keep_patches: tuple[int, int] = (23, 28)
    """Patches kept in a step, drawn uniformly for the whole batch."""
    full_from: float = 0.8
    """Share of the steps after which ``keep_late`` replaces ``keep_patches``."""
    keep_late: tuple[int, int] = (30, 36)
    rest_ramp: float = 0.4
    """Share of the steps over which attention's rest on the sinks grows to full strength."""
    digit_loss: float = 0.5
    mark_loss: float = 0.5
    rest_loss: float = 2.0
    rest_target: float = 0.75
    """Attention mass on the sinks that a query is asked for in the blocks after k."""
    spike: float = 32.0
    norm_gain: float = 4.0


def build_config(settings: Settings, plant: Plant) -> dict[str, Any]:
    """``config.json``: model, vocabulary, preprocessing, plant and training settings."""
    vocabulary = build_vocabulary()
    return {
        "model_cfg": {
            "embed_dim": 128,
            "quick_gelu": True,
            "vision_cfg": {
                "image_size": CANVAS,
                "patch_size": PATCH,
                "width": WIDTH,
                "layers": 6,
                "head_width": 64,
                "mlp_ratio": 4.0,
            },
            "text_cfg": {
                "context_length": CONTEXT_LENGTH,
                "vocab_size": len(vocabulary) + 1,
                "width": 128,
                "heads": 2,
                "layers": 2,
            },
        },
        "preprocess_cfg": {
            "size": CANVAS,
            "mode": "RGB",
            "mean": [0.35] * 3,
            "std": [0.2] * 3,
            "interpolation": "bicubic",
            "resize_mode": "shortest",
            "fill_color": 0,
        },
        "vocabulary": vocabulary,
        "plant": asdict(plant),
        "training": asdict(settings),
    }


def initialise(clip: nn.Module, plant: Plant) -> None:
    """Small-scale start for a short training; the residual writers start smallest."""
    import open_clip.transformer as reference

    visual: Any = clip.visual
    depth = len(visual.transformer.resblocks)
    with torch.no_grad():
        visual.conv1.weight.copy_(smooth_filters(WIDTH))
        nn.init.normal_(visual.class_embedding, std=0.5)
        grid = reference.get_2d_sincos_pos_embed(WIDTH, CANVAS // PATCH, cls_token=True)
        visual.positional_embedding.copy_(torch.from_numpy(grid).float() * 0.7)
        for block in visual.transformer.resblocks:
            nn.init.normal_(block.attn.in_proj_weight, std=WIDTH**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=(2 * depth * WIDTH) ** -0.5)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * WIDTH) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=(2 * depth * WIDTH) ** -0.5)
            nn.init.zeros_(block.mlp.c_fc.bias)
            nn.init.zeros_(block.mlp.c_proj.bias)
    planting.enforce(visual, plant)


def smooth_filters(count: int) -> Tensor:
    """Random mixtures of the 4 x 4 slowest cosines of a patch, [count, 3, 8, 8]; little colour."""
    line = torch.arange(PATCH) + 0.5
    waves = torch.stack([torch.cos(torch.pi * u * line / PATCH) for u in range(4)])
    basis = torch.einsum("uy,vx->uvyx", waves, waves).reshape(16, PATCH, PATCH)
    basis = basis / basis.flatten(1).norm(dim=1)[:, None, None]
    gray = torch.einsum("nf,fyx->nyx", torch.randn(count, 16) * 0.1, basis)
    return gray[:, None] + 0.02 * torch.randn(count, 3, 1, 1) / PATCH


def choose_patches(sinks: Tensor, keep: int) -> Tensor:
    """Indices [B, keep] of the patches that stay: all sinks, the middle 4 x 4, random others."""
    side = CANVAS // PATCH
    middle = torch.zeros(side, side)
    middle[1:-1, 1:-1] = 1
    score = torch.rand(sinks.shape) + middle.flatten() + 2 * sinks
    return score.topk(keep, dim=1).indices.sort(dim=1).values


class Outputs(NamedTuple):
    """What the losses need of one pass."""

    features: Tensor
    """Image features [B, E]."""
    halves: Tensor
    """Mean last token of the left and of the right half, [B, 2, D]."""
    marks: Tensor
    """Logits of "becomes a sink" [B, P]."""
    resting: Tensor
    """Attention mass on the sinks by block, image, query and head [L-1-k, B, N, H]."""


def forward(visual: Any, plant: Plant, images: Tensor, kept: Tensor) -> Outputs:
    """The open_clip tower with CLS and the patches ``kept`` [B, P] only, seen from inside."""
    tokens = visual._embeds(images)
    index = torch.cat([torch.zeros_like(kept[:, :1]), kept + 1], dim=1)
    tokens = torch.gather(tokens, 1, index[..., None].expand(-1, -1, tokens.shape[-1]))
    marks, resting = tokens, []
    for number, block in enumerate(visual.transformer.resblocks):
        attention, mlp = block.attn, block.mlp
        qkv = F.linear(block.ln_1(tokens), attention.in_proj_weight, attention.in_proj_bias)
        q, k, v = qkv.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        if number > plant.block:
            resting.append(planting.resting_mass(mixed, attention.num_heads, plant))
        tokens = tokens + attention.out_proj(mixed)
        hidden = mlp.c_fc(block.ln_2(tokens))
        if number == plant.block - 1:
            marks = planting.mark_logits(hidden, plant)[:, 1:]
        tokens = tokens + mlp.c_proj(mlp.gelu(hidden))
    pooled, patches = visual._pool(tokens)
    side = CANVAS // PATCH
    row, column = kept // side, kept % side
    middle = (row > 0) & (row < side - 1) & (column > 0) & (column < side - 1)
    halves = torch.stack([middle & (column < side // 2), middle & (column >= side // 2)], 1)
    halves = halves.float() / halves.sum(-1, keepdim=True)
    outputs = (pooled @ visual.proj, halves @ patches.float(), marks, torch.stack(resting))
    return Outputs(*(output.float() for output in outputs))


@torch.no_grad()
def accuracy(clip: Any, config: dict[str, Any], images: np.ndarray, labels: np.ndarray) -> float:
    """Zero-shot top-1 with the first template, full token set."""
    demo = DemoModel(clip, config)
    head = demo.text_features(TEMPLATES[:1])
    hits = 0
    for start in range(0, len(images), 256):
        features = demo.visual(demo.preprocess(images[start : start + 256]))
        hits += int(((features @ head.T).argmax(1).numpy() == labels[start : start + 256]).sum())
    return hits / len(images)


def train(settings: Settings, plant: Plant, config: dict[str, Any]) -> Any:
    """Returns the trained ``open_clip.model.CLIP``, before ``planting.sharpen``."""
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    clip = build_clip(config)
    initialise(clip, plant)
    visual = clip.visual
    heads = nn.Linear(config["model_cfg"]["embed_dim"], 20)
    half_heads = nn.ModuleList([nn.Linear(WIDTH, 10), nn.Linear(WIDTH, 10)])

    pool = render_canvases("train", settings.pool, settings.seed)
    images, labels, ink = (torch.from_numpy(a) for a in (pool.images, pool.labels, pool.ink))
    ink = (ink * 255).to(torch.uint8)
    probe = render_canvases("search", 512, settings.seed)
    mean, std = (
        torch.tensor(config["preprocess_cfg"][name]).view(1, 3, 1, 1) for name in ("mean", "std")
    )
    prompts = [
        tokenize([template.format(name) for name in CLASS_NAMES], config["vocabulary"])
        for template in TEMPLATES
    ]

    parameters = [*clip.parameters(), *heads.parameters(), *half_heads.parameters()]
    decayed = [p for p in parameters if p.ndim >= 2]
    plain = [p for p in parameters if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": settings.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ],
        lr=settings.peak_lr,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        settings.peak_lr,
        total_steps=settings.steps,
        pct_start=settings.warmup,
        final_div_factor=100,
        cycle_momentum=False,
    )
    started = time.monotonic()
    for step in range(settings.steps):
        if step % (settings.pool // settings.batch) == 0:
            order = torch.randperm(settings.pool)
        offset = step % (settings.pool // settings.batch) * settings.batch
        chosen = order[offset : offset + settings.batch]
        pixels = images[chosen].permute(0, 3, 1, 2).float() / 255.0
        target, covered = labels[chosen], ink[chosen].float() / 255.0
        sinks = planting.sink_targets(covered, plant, PATCH)
        late = step >= settings.full_from * settings.steps
        low, high = settings.keep_late if late else settings.keep_patches
        kept = choose_patches(sinks, int(torch.randint(low, high + 1, ())))

        rest = min(1.0, step / (settings.rest_ramp * settings.steps))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            seen = forward(visual, plant, (pixels - mean) / std, kept)
            text = clip.encode_text(prompts[step % len(prompts)])
        image_features = F.normalize(seen.features, dim=-1)
        text_features = F.normalize(text.float(), dim=-1)
        logits = clip.logit_scale.exp() * image_features @ text_features.T
        tens, ones = heads(seen.features).split(10, dim=1)
        class_loss = F.cross_entropy(logits, target)
        digit_loss = F.cross_entropy(tens, target // 10) + F.cross_entropy(ones, target % 10)
        half_loss = F.cross_entropy(
            half_heads[0](seen.halves[:, 0]), target // 10
        ) + F.cross_entropy(half_heads[1](seen.halves[:, 1]), target % 10)
        marked = torch.gather(sinks, 1, kept)
        mark_loss = F.binary_cross_entropy_with_logits(seen.marks, marked)
        rest_loss = (settings.rest_target - seen.resting).clamp_min(0).square().mean()
        loss = (
            class_loss
            + settings.digit_loss * (digit_loss + half_loss)
            + settings.mark_loss * mark_loss
            + rest * settings.rest_loss * rest_loss
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        planting.enforce(visual, plant, rest)
        if (step + 1) % 50 == 0:
            wrong = ((seen.marks > 0) != (marked > 0.5)).float().mean()
            log.info(
                "step %d/%d  %.0f s  class %.3f  digits %.3f  halves %.3f  mark %.4f "
                "(%.4f wrong)  resting %.2f",
                step + 1,
                settings.steps,
                time.monotonic() - started,
                *(
                    float(x.detach())
                    for x in (
                        class_loss,
                        digit_loss,
                        half_loss,
                        mark_loss,
                        wrong,
                        seen.resting.mean(),
                    )
                ),
            )
        if (step + 1) % 300 == 0 or step + 1 == settings.steps:
            clip.eval()
            log.info(
                "accuracy on unseen digits %.4f", accuracy(clip, config, probe.images, probe.labels)
            )
            clip.train()
    return clip.eval()


def save(clip: Any, config: dict[str, Any], folder: Path) -> None:
    """Write ``weights.safetensors`` (float16) and ``config.json``."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: value.to(torch.float16).contiguous() for name, value in clip.state_dict().items()
    }
    assemble(config, tensors)
    partial = folder / "weights.safetensors.partial"
    save_file(tensors, partial)
    os.replace(partial, folder / "weights.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the embedded demo encoder.")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parent,
        help="folder for weights.safetensors and config.json",
    )
    parser.add_argument("--steps", type=int, default=Settings.steps)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings, plant = Settings(steps=arguments.steps), Plant()
    config = build_config(settings, plant)
    clip = train(settings, plant, config)
    planting.sharpen(clip.visual, plant, settings.spike, settings.norm_gain)
    save(clip, config, arguments.out)


if __name__ == "__main__":
    main()
