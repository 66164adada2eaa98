"""The values that may be chosen, and one name for each choice."""

from __future__ import annotations

from dataclasses import dataclass, replace

from regcache_export.regcache_config import DeleteAt, PrefixBlocks

from ..encoders.regcache import RegCacheConfig

MAX_PREFIX, MAX_DELETE = 15, 10


@dataclass(frozen=True)
class SearchSpace:
    """Values that may be chosen; a single value fixes a dimension.

    Attributes:
        blocks: target blocks t.
        delete_block: block k.
        prefix: prefix counts tau.
        delete: delete counts k~.
        delete_at: place of the deletion within block k.
        prefix_blocks: blocks that see the prefix: from t on, or t only.
    """

    blocks: tuple[int, ...]
    delete_block: int
    prefix: tuple[int, ...] = tuple(range(MAX_PREFIX + 1))
    delete: tuple[int, ...] = tuple(range(MAX_DELETE + 1))
    delete_at: DeleteAt = "block_input"
    prefix_blocks: PrefixBlocks = "from"

    def config(self, block: int, prefix: int, delete: int) -> RegCacheConfig:
        """One choice in normal form: without a prefix the target block means nothing."""
        return RegCacheConfig(
            prefix_block=block if prefix else self.delete_block,
            prefix_count=prefix,
            delete_block=self.delete_block,
            delete_count=delete,
            delete_at=self.delete_at,
            prefix_scope=self.prefix_blocks,
        )

    def grid(self) -> list[RegCacheConfig]:
        """Every choice once, in order of (k~, tau, t)."""
        found = {
            self.config(block, tau, count): None
            for count in self.delete
            for tau in self.prefix
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

    def corners_of(self, config: RegCacheConfig) -> list[RegCacheConfig]:
        """Nothing, prefix only, delete only and both, as far as the space allows."""
        corners = [
            replace(config, prefix_count=tau, delete_count=count)
            for tau in (0, config.prefix_count)
            for count in (0, config.delete_count)
        ]
        named = [self.config(c.prefix_block, c.prefix_count, c.delete_count) for c in corners]
        return [
            c
            for c in dict.fromkeys(named)
            if c.prefix_count in self.prefix and c.delete_count in self.delete
        ]
