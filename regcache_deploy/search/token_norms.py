"""How massive tokens are where quantization hurts, before and after: the publication's measure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..encoders.canonical import Encoder
from ..encoders.regcache import RegCache, RegCacheConfig
from ..encoders.watching import Watched
from ..evaluation.image_sets import ImageSets
from ..work.cache import PartCache
from ..work.devices import halving
from ..work.gathered import Gathered
from .problem import register_hash


@dataclass(frozen=True)
class TokenNorms:
    """l-inf norms of the tokens at the input of one linear, in floating point.

    Attributes:
        layer: the linear.
        before, after: `[n]`, the largest token of every search image; `after` with the prefix and
            without the tokens that are absent while ranges are set, or None without RegCache.
        absent: how many these are.
        saturated: how many of them the graph keeps.
    """

    layer: str
    before: Tensor
    after: Tensor | None
    absent: int = 0
    saturated: int = 0

    def to_json(self) -> dict[str, Any]:
        """`largest` of all images, and `mean` over the images of each one's largest."""
        return {
            "layer": self.layer,
            "images": len(self.before),
            "before": _summary(self.before),
            "after": None if self.after is None else _summary(self.after),
            "after_means": self.after_means,
        }

    @property
    def after_means(self) -> str:
        """What `after` is, in words; empty without RegCache."""
        if self.after is None:
            return ""
        words = f"prefix in place, {self.absent} tokens an image absent, as ranges are set"
        if self.saturated:
            words += f"; the graph keeps {self.saturated} of them, which saturate"
        return words


def _summary(norms: Tensor) -> dict[str, float]:
    return {"largest": float(norms.max()), "mean": float(norms.mean())}


def measure_norms(
    encoder: Encoder,
    sets: ImageSets,
    layer: str,
    config: RegCacheConfig,
    register: Mapping[int, Tensor],
    cache: PartCache,
    batch_size: int,
) -> TokenNorms:
    """One float pass up to the layer, and another one with RegCache.

    Args:
        layer: a linear.
        config: of the chosen way; empty measures no `after`.
        register: of `config.prefix_block`; unused without a prefix.
        cache: keeps the norms.
    """
    in_ranges = config.for_ranges()
    held = dict(register) if config.has_prefix else {}
    regcache = None if config.is_empty else RegCache(in_ranges, held)

    def of(active: RegCache | None) -> Tensor:
        key = {
            "layer": layer,
            "config": in_ranges.to_json() if active else None,
            "register": register_hash(held) if active else None,
        }

        def compute() -> dict[str, Tensor]:
            return {"norms": largest_norms(encoder, sets, layer, active, batch_size)}

        return cache.part("token_norms", compute, images=sets.search.fingerprint(), **key)["norms"]

    return TokenNorms(
        layer,
        of(None),
        None if regcache is None else of(regcache),
        config.range_delete_count,
        config.range_delete_count - config.delete_count,
    )


@torch.no_grad()
def largest_norms(
    encoder: Encoder, sets: ImageSets, layer: str, regcache: RegCache | None, batch_size: int
) -> Tensor:
    """l-inf norm of the largest token of every search image at the layer's input: `[n]`."""
    stop = int(layer.split(".")[1]) + 1

    def run(images: Tensor) -> Tensor:
        seen: list[Tensor] = []

        def see(name: str, x: Tensor) -> None:
            if name == layer:
                seen.append(x.abs().amax(dim=(1, 2)).cpu())

        encoder.run_blocks(encoder.embed(images), 0, stop, Watched(see), regcache)
        return seen[0]

    found = Gathered()
    for images in sets.search.batches(batch_size):
        for norms in halving(run, images):
            found.add(norms)
    return found.rows
