"""The numbers of a RegCache choice: where the prefix starts, how many copies, what is deleted."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from .errors import ConfigError
from .json_types import check_fields
from .spec import EncoderSpec

DeleteAt = Literal["block_input", "mlp_input"]
PrefixBlocks = Literal["from", "only"]

MAX_PREFIX_COUNT = 64


@dataclass(frozen=True)
class RegCacheConfig:
    """One point of the search space (arXiv 2510.04547, section 4).

    Attributes:
        prefix_block: first block t whose attention sees the cached keys and values.
        prefix_count: number tau of identical copies; 0 means no prefix.
        delete_block: block k at which the image's own sink tokens are deleted.
        delete_count: number k~ of patch tokens deleted per image; 0 means none.
        delete_at: before block k (`block_input`) or between its attention and its MLP.
        prefix_scope: blocks t..L-1 see the prefix (`from`), or block t `only` (DINOv2 in v4).
    """

    prefix_block: int
    prefix_count: int
    delete_block: int
    delete_count: int
    delete_at: DeleteAt = "block_input"
    prefix_scope: PrefixBlocks = "from"

    @property
    def has_prefix(self) -> bool:
        return self.prefix_count > 0

    @property
    def deletes(self) -> bool:
        return self.delete_count > 0

    @property
    def is_empty(self) -> bool:
        return not (self.has_prefix or self.deletes)

    @property
    def first_block(self) -> int:
        """First block that this choice changes; earlier hidden states do not depend on it."""
        blocks = [self.prefix_block] if self.has_prefix else []
        blocks += [self.delete_block] if self.deletes else []
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
        if not 0 <= self.delete_count < spec.num_patches:
            raise ConfigError(
                f"delete count {self.delete_count} is out of range: this encoder has "
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
        """Inverse of `to_json`; raises BundleError on an unknown, missing or mistyped field."""
        check_fields("the RegCache choice", data, cls)
        return cls(**data)
