"""The values that may be chosen, and one name for each choice."""

from __future__ import annotations

from dataclasses import dataclass, replace

from regcache_export.regcache_config import DeleteAt, PrefixBlocks

from ..encoders.regcache import RegCacheConfig

MAX_PREFIX, MAX_DELETE = 15, 10

Counts = tuple[int, int]
"""How many tokens are absent while the ranges are set, and how many the graph deletes."""


@dataclass(frozen=True)
class SearchSpace:
    """Values that may be chosen; a single value fixes a dimension.

    Attributes:
        blocks: target blocks t.
        delete_block: block k.
        prefix: prefix counts tau.
        delete: delete counts k~ of the graph.
        delete_at: place of the deletion within block k.
        prefix_blocks: blocks that see the prefix: from t on, or t only.
        ranges: delete counts while the ranges are set; None is the published method, in which they
            are those of the graph.
    """

    blocks: tuple[int, ...]
    delete_block: int
    prefix: tuple[int, ...] = tuple(range(MAX_PREFIX + 1))
    delete: tuple[int, ...] = tuple(range(MAX_DELETE + 1))
    delete_at: DeleteAt = "block_input"
    prefix_blocks: PrefixBlocks = "from"
    ranges: tuple[int, ...] | None = None

    def config(
        self, block: int, prefix: int, delete: int, absent: int | None = None
    ) -> RegCacheConfig:
        """One choice in normal form: without a prefix the target block means nothing.

        `absent` tokens while the ranges are set; None is as many as are deleted.
        """
        return RegCacheConfig(
            prefix_block=block if prefix else self.delete_block,
            prefix_count=prefix,
            delete_block=self.delete_block,
            delete_count=delete,
            delete_at=self.delete_at,
            prefix_scope=self.prefix_blocks,
            range_delete_count=delete if absent is None else absent,
        )

    @property
    def two_counts(self) -> bool:
        """Ranges may be set without tokens that the graph keeps."""
        return self.ranges is not None

    @property
    def published(self) -> SearchSpace:
        """The paper's grid of (t, tau, k~), by whose size every cost is judged."""
        return replace(self, ranges=None)

    @property
    def absent(self) -> tuple[int, ...]:
        """Delete counts of the ranges."""
        return self.delete if self.ranges is None else self.ranges

    def deleted(self, absent: int) -> tuple[int, ...]:
        """Delete counts of the graph that go with one of the ranges."""
        if self.ranges is None:
            return (absent,)
        return tuple(count for count in self.delete if count <= absent)

    def counts(self, prefixed: bool = True) -> list[Counts]:
        """Every pair of counts, the graph's never the larger one.

        Without a prefix attention has nowhere else to rest, so there is no saturation, unless the
        user's fixed values leave nothing but that.
        """
        pairs = [(absent, count) for absent in self.absent for count in self.deleted(absent)]
        if prefixed:
            return pairs
        alike = [(r, d) for r, d in pairs if r == d]
        return alike if alike or any(self.prefix) else pairs

    def grid(self) -> list[RegCacheConfig]:
        """Every choice once, in order of (ranges, k~, tau, t)."""
        alike = set(self.counts(prefixed=False))
        found = {
            self.config(block, tau, deleted, absent): None
            for absent, deleted in self.counts()
            for tau in self.prefix
            if tau or (absent, deleted) in alike
            for block in self.blocks
        }
        return list(found)

    @property
    def fixed(self) -> bool:
        """Only one choice is left."""
        return len(self.grid()) == 1

    @property
    def without_block_k(self) -> bool:
        """The one choice that is left does not depend on block k."""
        return self.fixed and not any(self.delete)

    @property
    def nothing(self) -> RegCacheConfig:
        """No prefix, no deletion."""
        return self.config(self.delete_block, 0, 0)

    def holds(self, config: RegCacheConfig) -> bool:
        """Whether the grid has this choice, which is in normal form."""
        counts = config.range_delete_count, config.delete_count
        return config.prefix_count in self.prefix and counts in self.counts(config.has_prefix)

    @property
    def corner_count(self) -> int:
        """How many corners a choice has at most, itself included."""
        return 5 if self.two_counts else 4

    def corners_of(self, config: RegCacheConfig) -> list[RegCacheConfig]:
        """Nothing, delete only, prefix only, saturation and both, as far as the space allows."""
        block, tau, absent = config.prefix_block, config.prefix_count, config.range_delete_count
        corners = [
            self.nothing,
            self.config(block, 0, absent),
            self.config(block, tau, 0),
            self.config(block, tau, 0, absent if self.two_counts else 0),
            self.config(block, tau, config.delete_count, absent),
        ]
        return [corner for corner in dict.fromkeys(corners) if self.holds(corner)]
