"""Rotary position embedding (RoPE): queries and keys turned by the angles of their own patch.

A deleted token takes its angles with it, and the others keep theirs; so whoever runs blocks one by
one carries `Survivors` from block to block. The cached keys of RegCache are not turned: the
register is no patch, and like a class token it stands at angle 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Survivors:
    """Which patches are left, while blocks run one after the other.

    Attributes:
        kept: their indices `[B, n]` in the order of the tokens; None while all are there. A merged
            token has that of its destination.
        sizes: how many patches each of them stands for, `[B, n]`; None while it is one.
    """

    kept: Tensor | None = None
    sizes: Tensor | None = None

    def take(self, places: Tensor) -> None:
        """Go on with the patches at `places [B, m]` among those that are left."""
        self.take_positions(places)
        if self.sizes is not None:
            self.sizes = torch.gather(self.sizes, 1, places)

    def take_positions(self, places: Tensor) -> None:
        """The same, sizes apart."""
        self.kept = places if self.kept is None else torch.gather(self.kept, 1, places)


def angles_of(
    table: Tensor, tokens: int, num_prefix_tokens: int, survivors: Survivors
) -> Tensor | None:
    """Cosines and sines `[1 or B, 1, tokens, d]` of the tokens that are left.

    Args:
        table: of all tokens, `[N, d]`.
        tokens: how many are left.
        num_prefix_tokens: leading tokens, which are always there.
        survivors: the patches among them.

    Returns:
        None for a token alone: it attends to itself, and turning query and key by one angle
        changes nothing.

    Raises:
        ValueError: tokens are missing, and `survivors` does not say which.
    """
    kept = survivors.kept
    if kept is not None:
        special = table[:num_prefix_tokens].expand(len(kept), -1, -1)
        return torch.cat([special, table[num_prefix_tokens:][kept]], dim=1).unsqueeze(1)
    if tokens == 1:
        return None
    if tokens != len(table):
        raise ValueError(f"{tokens} of {len(table)} tokens, and nothing says which these are")
    return table[None, None]


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn channels i and i + d/2 of `x [B, H, N, d]` by angle i of `angles [1 or B, 1, N, d]`."""
    cos, sin = angles.chunk(2, dim=-1)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
