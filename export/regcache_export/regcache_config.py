"""The numbers of a RegCache choice: where the prefix starts, how many copies, what is deleted."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from .errors import BundleError, ConfigError
from .json_types import check_fields
from .spec import EncoderSpec

DeleteAt = Literal["block_input", "mlp_input"]
PrefixBlocks = Literal["from", "only"]

MAX_PREFIX_COUNT = 64


@dataclass(frozen=True)
class RegCacheConfig:
    """One point of the search space (arXiv 2510.04547, section 4).

    The paper has one delete count. Here the ranges of the quantizers may be set with more tokens
    absent than the graph deletes: the sinks that stay saturate at fc2 of block k, so they never
    become massive, and the prefix is where attention rests. With a `delete_count` of 0 no token
    leaves at run time.

    Attributes:
        prefix_block: first block t whose attention sees the cached keys and values.
        prefix_count: number tau of identical copies; 0 means no prefix.
        delete_block: block k at which the image's own sink tokens are deleted.
        delete_count: number k~ of patch tokens that the graph deletes per image; 0 means none.
        delete_at: before block k (`block_input`) or between its attention and its MLP.
        prefix_scope: blocks t..L-1 see the prefix (`from`), or block t `only` (DINOv2 in v4).
        range_delete_count: how many are absent while the ranges are set, at the same place; never
            fewer than `delete_count`, which is also what leaving it out means.

    Raises:
        ConfigError: the graph would delete tokens that were there when the ranges were set.
    """

    prefix_block: int
    prefix_count: int
    delete_block: int
    delete_count: int
    delete_at: DeleteAt = "block_input"
    prefix_scope: PrefixBlocks = "from"
    range_delete_count: int = None  # type: ignore[assignment]  # an int from __post_init__ on

    def __post_init__(self) -> None:
        given: Any = self.range_delete_count
        if given is None:
            object.__setattr__(self, "range_delete_count", self.delete_count)
        if self.range_delete_count < self.delete_count:
            raise ConfigError(
                f"range delete count {self.range_delete_count} is below the delete count "
                f"{self.delete_count}: what the graph deletes must be absent while the ranges are "
                "set, too"
            )

    @property
    def has_prefix(self) -> bool:
        return self.prefix_count > 0

    @property
    def deletes(self) -> bool:
        """The graph deletes tokens."""
        return self.delete_count > 0

    @property
    def saturates(self) -> bool:
        """Some tokens that are absent while the ranges are set stay in the graph."""
        return self.range_delete_count > self.delete_count

    def deleting(self, count: int, range_count: int | None = None) -> RegCacheConfig:
        """The same choice with other delete counts; without the second one they are equal."""
        absent = count if range_count is None else range_count
        return replace(self, delete_count=count, range_delete_count=absent)

    def for_ranges(self) -> RegCacheConfig:
        """What is in place while the ranges are set: every absent token is deleted."""
        return self.deleting(self.range_delete_count)

    @property
    def is_empty(self) -> bool:
        return not (self.has_prefix or self.range_delete_count)

    @property
    def first_block(self) -> int:
        """First block that this choice changes; earlier hidden states do not depend on it."""
        blocks = [self.prefix_block] if self.has_prefix else []
        blocks += [self.delete_block] if self.range_delete_count else []
        return min(blocks, default=max(self.prefix_block, self.delete_block))

    def prefix_blocks(self, depth: int) -> list[int]:
        """Blocks whose attention sees the prefix."""
        end = self.prefix_block + 1 if self.prefix_scope == "only" else depth
        return list(range(self.prefix_block, end)) if self.has_prefix else []

    def check(self, spec: EncoderSpec) -> None:
        """Raise ConfigError where a number is out of range for this encoder."""
        for name, block in (
            ("prefix block", self.prefix_block),
            ("delete block", self.delete_block),
        ):
            if not 0 <= block < spec.depth:
                raise ConfigError(
                    f"{name} {block} is out of range: this encoder has blocks 0..{spec.depth - 1}"
                )
        if not 0 <= self.prefix_count <= MAX_PREFIX_COUNT:
            raise ConfigError(
                f"prefix count {self.prefix_count} is out of range: take 0 (no prefix) to "
                f"{MAX_PREFIX_COUNT}; the paper searches 1..15"
            )
        for name, count in (
            ("delete count", self.delete_count),
            ("range delete count", self.range_delete_count),
        ):
            if not 0 <= count < spec.num_patches:
                raise ConfigError(
                    f"{name} {count} is out of range: this encoder has "
                    f"{spec.num_patches} patch tokens, and at least one must stay"
                )

    def to_json(self) -> dict[str, Any]:
        """All fields; the scope only where it is not the usual one, as in older files."""
        values = asdict(self)
        if self.prefix_scope == "from":
            del values["prefix_scope"]
        return values

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RegCacheConfig:
        """Inverse of `to_json`; without `range_delete_count`, written before there was one, equal.

        Raises:
            BundleError: an unknown, missing or mistyped field, or counts that contradict.
        """
        check_fields("the RegCache choice", data, cls)
        try:
            return cls(**data)
        except ConfigError as error:
            raise BundleError(f"the RegCache choice is damaged: {error}") from error
