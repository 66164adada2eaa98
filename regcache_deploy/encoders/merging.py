"""Token merging in the simulation: who is paired with whom, and what becomes of the tokens.

`regcache_export.merge` says what is computed and in which order the tokens come out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regcache_export.merge import NORM_FLOOR, Merge

from .rotary import Survivors

PUBLISHED_REGISTERS = 4
"""The published code protects as many destinations at the end, however many registers there are."""


@dataclass(frozen=True)
class Pairs:
    """Sources and destinations of one merge, per image.

    Attributes:
        order: places `[B, |A|]` among the sources, most similar first, ties by place.
        destinations: places `[B, r]` among the destinations of the first r, which go.
        similarity: cosines `[B, |A|, |B|]` they were found by, sources by place.
    """

    order: Tensor
    destinations: Tensor
    similarity: Tensor


def find_pairs(metric: Tensor, count: int) -> Pairs:
    """Pair the patches at even places with those at odd ones.

    Args:
        metric: `[B, P, C]`, one row per patch.
        count: sources r that go, at most half of the patches.
    """
    similarity = _cosines(metric)
    order = torch.sort(similarity.amax(dim=-1), dim=1, descending=True, stable=True).indices
    return Pairs(order, _rows(similarity, order[:, :count]).argmax(dim=-1), similarity)


def merge_patches(
    tokens: Tensor, pairs: Pairs, num_prefix_tokens: int, survivors: Survivors
) -> Tensor:
    """Merge the most similar sources into their destinations.

    Args:
        tokens: `[B, N, D]`.
        pairs: of the patches among them.
        num_prefix_tokens: leading tokens, which take no part.
        survivors: changed to what is left. A merged token has the place of its destination.

    Returns:
        `[B, N - r, D]`.
    """
    special, patches = tokens[:, :num_prefix_tokens], tokens[:, num_prefix_tokens:]
    sizes = survivors.sizes
    if sizes is None:
        sizes = torch.ones(patches.shape[:2], dtype=tokens.dtype, device=tokens.device)
    target = pairs.destinations
    places, count = 2 * pairs.order, target.shape[1]
    source, stays = places[:, :count], places[:, count:]
    hit = torch.nn.functional.one_hot(target, patches.shape[1] // 2).to(tokens.dtype)
    hit = hit.transpose(1, 2)
    gained, own = torch.gather(sizes, 1, source)[..., None], sizes[:, 1::2, None]
    total = own + hit @ gained
    # a destination that receives nothing stays what it is, bit for bit: own / total is 1
    share = gained / _rows(total, target)
    merged = patches[:, 1::2] * (own / total) + hit @ (_rows(patches, source) * share)
    survivors.sizes = torch.cat([torch.gather(sizes, 1, stays), total[..., 0]], dim=1)
    odd = torch.arange(1, patches.shape[1], 2, device=tokens.device).expand(len(tokens), -1)
    survivors.take_positions(torch.cat([stays, odd], dim=1))
    return torch.cat([special, _rows(patches, stays), merged], dim=1)


def merge_as_published(
    tokens: Tensor, metric: Tensor, count: int, num_prefix_tokens: int, survivors: Survivors
) -> Tensor:
    """The indexing of RegToMe's published code, for comparison.

    Registers stand at the end there; they are moved at the first merge. All tokens are matched;
    the class token is no source, and the last four destinations receive nothing. As sources, and
    as destinations once the order has changed, registers are merged like any other token.

    Args:
        tokens: `[B, N, D]`, the class token in front.
        metric: `[B, N, C]`.
        count: sources to merge away.
        num_prefix_tokens: leading tokens at the encoder's input.
        survivors: its `sizes [B, N]` are those of all tokens here.
    """
    if survivors.sizes is None:
        order = torch.arange(tokens.shape[1], device=tokens.device)
        registers = order[1:num_prefix_tokens]
        order = torch.cat([order[:1], order[num_prefix_tokens:], registers])
        tokens, metric = tokens[:, order], metric[:, order]
        survivors.sizes = torch.ones(tokens.shape[:2], dtype=tokens.dtype, device=tokens.device)
    sizes, similarity = survivors.sizes[..., None], _cosines(metric)
    similarity[:, 0] = -torch.inf
    similarity[:, :, -PUBLISHED_REGISTERS:] = -torch.inf
    best, nearest = similarity.max(dim=-1)
    order = best.argsort(dim=-1, descending=True, stable=True)
    source, stays = order[:, :count], order[:, count:].sort(dim=1).values
    target = torch.gather(nearest, 1, source)
    weighted = torch.cat([tokens * sizes, sizes], dim=-1)
    even, odd = weighted[:, ::2], weighted[:, 1::2].clone()
    index = target[..., None].expand(-1, -1, weighted.shape[-1])
    odd.scatter_add_(1, index, _rows(even, source))
    joined = torch.cat([_rows(even, stays), odd], dim=1)
    survivors.sizes = joined[..., -1]
    return joined[..., :-1] / joined[..., -1:]


def log_sizes(sizes: Tensor, num_prefix_tokens: int, cached: int) -> Tensor:
    """What joins the logits of `cached` keys, leading tokens and patches: `[B, 1, 1, T]`."""
    ahead = sizes.new_zeros(len(sizes), cached + num_prefix_tokens)
    return torch.cat([ahead, sizes.log()], dim=1)[:, None, None]


def require_sizes(merge: Merge | None, block: int, survivors: Survivors | None) -> Tensor | None:
    """Sizes `[B, n]` of the patches at the input of a block; None where each is one patch.

    Raises:
        ValueError: tokens were merged before, and `survivors` does not say which.
    """
    sizes = survivors.sizes if survivors else None
    if merge is not None and merge.merged_before(block) and sizes is None:
        raise ValueError(
            f"tokens were merged before block {block}, and nothing says what they stand for; hand "
            "the same survivors to all blocks and to the pooling"
        )
    return sizes


def _cosines(metric: Tensor) -> Tensor:
    """Between rows at even and at odd places: `[B, |A|, |B|]`."""
    length = torch.linalg.vector_norm(metric, dim=-1, keepdim=True).clamp_min(NORM_FLOOR)
    unit = metric / length
    cosines: Tensor = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)
    return cosines


def _rows(tokens: Tensor, places: Tensor) -> Tensor:
    return torch.gather(tokens, 1, places[..., None].expand(-1, -1, tokens.shape[-1]))
