"""RegCache as tensors: a choice of numbers and the register it caches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from regcache_export.regcache_config import RegCacheConfig

__all__ = ["RegCache", "RegCacheConfig", "delete_sinks", "kept_patches", "take_patches"]


@dataclass(frozen=True)
class RegCache:
    """A RegCache choice with its register.

    Attributes:
        config: the numbers.
        register: per block from `config.prefix_block` on, the mean LN1 *output* `[D]` of the
            averaged sink tokens. The mean commutes with the key and value projections, so the
            cached K and V follow by one GEMV, also after a fold changed LN1 and the projection
            (the fold changes the register with them).
    """

    config: RegCacheConfig
    register: Mapping[int, Tensor] = field(default_factory=dict)

    def for_ranges(self) -> RegCache:
        """What is in place while ranges are set; the graph may delete fewer tokens."""
        return RegCache(self.config.for_ranges(), self.register)


def delete_sinks(tokens: Tensor, count: int, num_prefix_tokens: int) -> Tensor:
    """Drop the `count` patch tokens of largest l-inf norm, per image.

    Args:
        tokens: `[B, N, D]`.
        count: tokens to delete per image.
        num_prefix_tokens: leading tokens that are never deleted.

    Returns:
        `[B, N - count, D]`: the leading tokens, then the kept patches by ascending l-inf norm,
        ties by position; the order in which ONNX's TopK (smallest, sorted) returns them.
    """
    kept = kept_patches(tokens, count, num_prefix_tokens)
    return take_patches(tokens, kept, num_prefix_tokens)


def kept_patches(tokens: Tensor, count: int, num_prefix_tokens: int) -> Tensor:
    """Indices `[B, n]` of the patches that `delete_sinks` leaves, in its order."""
    scores = tokens[:, num_prefix_tokens:].abs().amax(dim=-1)
    order = torch.sort(scores, dim=1, stable=True).indices
    return order[:, : scores.shape[1] - count]


def take_patches(tokens: Tensor, kept: Tensor, num_prefix_tokens: int) -> Tensor:
    """The leading tokens, then the patches `kept [B, n]`."""
    special, patches = tokens[:, :num_prefix_tokens], tokens[:, num_prefix_tokens:]
    index = kept.unsqueeze(-1).expand(-1, -1, patches.shape[-1])
    return torch.cat([special, torch.gather(patches, 1, index)], dim=1)
