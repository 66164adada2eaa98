"""The numbers behind the pictures of a search: what the tokens look like, before and after."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..encoders.canonical import FLOAT, Encoder
from ..encoders.regcache import RegCache, RegCacheConfig
from ..encoders.rotary import Survivors
from ..evaluation.image_sets import ImageSets
from .find import FoundChoice

THUMBNAILS = 8


@torch.no_grad()
def token_norms(
    encoder: Encoder, tokens: Tensor, regcache: RegCache | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and largest l-inf norm of every token at every block's input, over the images.

    Args:
        tokens: `[B, N, D]` at the input of block 0.
        regcache: prefix and deletion to be active.

    Returns:
        Two `[L, N]`; tokens that are deleted are NaN from there on. Where a deletion has mixed the
        order of the tokens, they stand where they stood in the image.
    """
    depth, count = encoder.spec.depth, tokens.shape[1]
    positions = torch.arange(count, device=tokens.device).expand(len(tokens), -1)
    means = tokens.new_full((depth, count), torch.nan)
    largest, survivors = means.clone(), Survivors()
    for index in range(depth):
        norms = tokens.new_full((len(tokens), count), torch.nan)
        norms.scatter_(1, positions, tokens.abs().amax(dim=-1))
        means[index] = norms.nanmean(dim=0)
        largest[index] = norms.nan_to_num(nan=-torch.inf).amax(dim=0)
        if regcache is not None and index == regcache.config.delete_block:
            positions = kept_positions(encoder, tokens, regcache, positions)
        tokens = encoder.block(index, tokens, FLOAT, regcache, survivors)
    largest[largest == -torch.inf] = torch.nan
    return means, largest


def kept_positions(
    encoder: Encoder, tokens: Tensor, regcache: RegCache, positions: Tensor
) -> Tensor:
    """Which of `positions [B, N]` are left after block k's deletion, in the order of the tokens.

    The deletion itself is done by the encoder. It looks at the block's input, or at what its
    attention made of it.
    """
    config = regcache.config
    if not config.deletes:
        return positions
    special = encoder.spec.num_prefix_tokens
    if config.delete_at == "mlp_input":
        tokens = tokens_before_mlp(encoder, tokens, regcache)
    scores = tokens[:, special:].abs().amax(dim=-1)
    order = torch.sort(scores, dim=1, stable=True).indices
    keep = order[:, : scores.shape[1] - config.delete_count] + special
    leading = torch.arange(special, device=tokens.device).expand(len(tokens), -1)
    keep = torch.cat([leading, keep], dim=1)
    return positions.gather(1, keep)


def tokens_before_mlp(encoder: Encoder, tokens: Tensor, regcache: RegCache) -> Tensor:
    """Tokens `[B, N, D]` between attention and MLP of block k, before the deletion."""
    index = regcache.config.delete_block
    silent = {
        f"blocks.{index}.mlp.fc2.{part}": torch.zeros_like(
            encoder.weights[f"blocks.{index}.mlp.fc2.{part}"]
        )
        for part in ("weight", "bias")
    }
    config = regcache.config
    without = RegCacheConfig(config.prefix_block, config.prefix_count, config.delete_block, 0)
    return encoder.replace(silent).block(index, tokens, FLOAT, RegCache(without, regcache.register))


@torch.no_grad()
def picture_data(encoder: Encoder, sets: ImageSets, found: FoundChoice) -> dict[str, Any]:
    """Arrays for `report.plots`: norms before and after, sinks, thumbnails.

    `deleted` marks the patches that are absent while ranges are set: deleted or saturated.

    All in floating point: quantization does not move the sinks.
    """
    config = found.result.best
    rows = torch.arange(min(THUMBNAILS, len(sets.search)))
    tokens = sets.tokens(encoder, rows)
    regcache = None if config.is_empty else RegCache(config, found.register)
    before, before_max = token_norms(encoder, tokens)
    after, after_max = token_norms(encoder, tokens, regcache)
    special = encoder.spec.num_prefix_tokens
    shape = (len(rows), encoder.spec.num_patches)
    deleted = tokens.new_zeros(shape, dtype=torch.bool)
    absent = config.for_ranges()  # what saturates stays in the graph, and is a sink all the same
    if absent.deletes:
        sinks = RegCache(absent, found.register if config.has_prefix else {})
        state = encoder.run_blocks(tokens, 0, config.delete_block, FLOAT, sinks)
        every = torch.arange(state.shape[1], device=state.device).expand(len(rows), -1)
        kept = kept_positions(encoder, state, sinks, every)[:, special:] - special
        deleted = torch.ones_like(deleted).scatter_(1, kept, False)
    return {
        "norms_before": before.cpu().numpy(),
        "norms_after": after.cpu().numpy(),
        "largest_before": before_max.cpu().numpy(),
        "largest_after": after_max.cpu().numpy(),
        "deleted": deleted.view(len(rows), *encoder.spec.grid).cpu().numpy(),
        "thumbnails": sets.search.pixels[rows].numpy(),
    }
