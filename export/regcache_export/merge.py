"""Token merging: how many patch tokens each block merges away, and by what they are paired.

Bipartite soft matching (ToMe, arXiv 2210.09461, section 3) over the patch tokens alone, between
the attention and the MLP of a block: patches at even places are sources, those at odd places
destinations; every source has its most similar destination, and the r sources most similar to
theirs are averaged into them, weighted by the patches that a token stands for. The class token and
trained registers take no part, wherever an encoder has them (`EncoderSpec.num_prefix_tokens`).

The tokens behind a merge are: the leading ones; the sources that stay, most similar first, ties by
place; all destinations by place. Graph, simulation and reference keep this order, because it
decides who is source and who is destination in the next block.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

from .errors import BundleError, ConfigError
from .json_types import check_fields, expect
from .regcache_config import RegCacheConfig
from .spec import EncoderSpec

Metric = Literal["keys", "residual"]
"""`keys`: the mean over heads of the keys that attention used (behind rotary positions, in front of
the quantizer of its operand). `residual`: the token itself, behind the attention's update."""

NORM_FLOOR = 1e-6
"""Least length that a metric is divided by: one of all zeros is similar to nothing. A graph's
LpNormalization keeps that for zeros alone; nothing real is as short."""

_CONSTANT = re.compile(r"[+-]?\d{1,9}", re.ASCII)
_LINEAR = re.compile(r"\(\s*([+-]?\d{1,9})\s*,\s*([+-]?\d{1,9}(?:\.\d+)?)\s*\)", re.ASCII)
_EVERY = re.compile(r"([+-]?\d{1,9})\s*/\s*(\d{1,9})", re.ASCII)
_CUT = re.compile(r"(\d{1,9})\s*:\s*([+-]?\d{1,9})", re.ASCII)
_LIST = re.compile(r"[+-]?\d{1,9}(\s*,\s*[+-]?\d{1,9})+", re.ASCII)

FORMS = 'R, "(R,F)", R/N, a list R0,R1,... or one cut BLOCK:R'


@dataclass(frozen=True)
class MergeSchedule:
    """A schedule as asked for, for an encoder of any depth.

    Attributes:
        text: as written.
        rate, inflect: mean count per block, and how it grows: -1 decreasing, 0 constant, 1
            increasing. Their last blocks are capped where too few tokens are left, as published.
        every: merge in each N-th block only, from the first on; capped likewise. Half of the merges
            cost half: `16/2` merges as many as `8` in each two blocks, and earlier.
        listed: counts of the first blocks, the others merge nothing; or None. Not capped.
        cut: block and count of a single merge, or None. Not capped.
    """

    text: str
    rate: int = 0
    inflect: float = 0.0
    every: int = 1
    listed: tuple[int, ...] | None = None
    cut: tuple[int, int] | None = None

    @classmethod
    def parse(cls, text: str) -> MergeSchedule:
        """Read `8`, `(16,-1)`, `16/2`, `8,8,0,4` or `3:69`.

        Raises:
            ConfigError: none of these, a negative count, an F outside of -1..1, or N 0.
        """
        written = text.strip()
        if _CONSTANT.fullmatch(written):
            schedule = cls(written, rate=int(written))
        elif found := _LINEAR.fullmatch(written):
            schedule = cls(written, rate=int(found[1]), inflect=float(found[2]))
        elif found := _EVERY.fullmatch(written):
            schedule = cls(written, rate=int(found[1]), every=int(found[2]))
        elif found := _CUT.fullmatch(written):
            schedule = cls(written, cut=(int(found[1]), int(found[2])))
        elif _LIST.fullmatch(written):
            schedule = cls(written, listed=tuple(map(int, written.split(","))))
        else:
            raise ConfigError(f"--merge {text!r} is no schedule; take {FORMS}")
        if not -1 <= schedule.inflect <= 1:
            raise ConfigError(f"--merge {text}: F is out of range; take -1 to 1")
        if not schedule.every:
            raise ConfigError(f"--merge {text}: N is out of range; take 1 or more")
        counts = [schedule.rate, *(schedule.listed or ())]
        counts += [schedule.cut[1]] if schedule.cut else []
        if min(counts) < 0:
            hint = f'; the growing or shrinking schedule is "({text})"' if schedule.listed else ""
            raise ConfigError(f"--merge {text}: a block cannot merge {min(counts)} tokens{hint}")
        return schedule

    @property
    def is_named(self) -> bool:
        """A rule for any depth, which is capped as published; other forms mean what they say."""
        return self.listed is None and self.cut is None

    def wanted(self, depth: int) -> tuple[int, ...]:
        """Counts of `depth` blocks, before any cap.

        Raises:
            ConfigError: more counts than blocks, or a cut behind the last one.
        """
        if self.cut is not None:
            block, count = self.cut
            if block >= depth:
                raise ConfigError(
                    f"--merge {self.text}: this encoder has blocks 0..{depth - 1}, not {block}"
                )
            return tuple(count if index == block else 0 for index in range(depth))
        if self.listed is not None:
            if len(self.listed) > depth:
                raise ConfigError(
                    f"--merge {self.text}: {len(self.listed)} counts for {depth} blocks"
                )
            return (*self.listed, *[0] * (depth - len(self.listed)))
        first = int(self.rate * (1 - self.inflect))
        step = (2 * self.rate - 2 * first) / max(depth - 1, 1)
        counts = (int(first + step * index) for index in range(depth))
        return tuple(0 if index % self.every else count for index, count in enumerate(counts))

    def counts(self, spec: EncoderSpec, regcache: RegCacheConfig | None = None) -> tuple[int, ...]:
        """Counts of an encoder's blocks.

        A block can merge at most half of the patches that are left, rounded down. Named schedules
        are cut to that; of 201 tokens, `16` merges 10 in the last of 12 blocks. In the last block
        of an encoder that reads its class token alone, nothing is merged: nobody would see it.

        Args:
            spec: the encoder.
            regcache: a deletion takes its tokens before the block's merge.

        Raises:
            ConfigError: as `wanted`; a listed count is too large for what is left; or fewer
                patches are left than RegCache deletes.
        """
        wanted = list(self.wanted(spec.depth))
        if spec.pool == "cls":
            wanted[-1] = 0
        if self.is_named:
            left = spec.num_patches
            for index, count in enumerate(wanted):
                left -= _deleted(regcache, index)
                wanted[index] = min(count, max(left, 0) // 2)
                left -= wanted[index]
        counts = tuple(wanted)
        Merge(counts).check(spec, regcache, f"--merge {self.text}")
        return counts


@dataclass(frozen=True)
class MergeOptions:
    """What a user asks for; `of` makes it a `Merge` for one encoder and one RegCache choice.

    Attributes:
        schedule: see `MergeSchedule.parse`.
        metric, proportional, compat: as in `Merge`.
    """

    schedule: MergeSchedule
    metric: Metric = "keys"
    proportional: bool = False
    compat: bool = False

    def of(self, spec: EncoderSpec, regcache: RegCacheConfig | None = None) -> Merge | None:
        """The merge of an encoder; None where it merges nothing.

        Raises:
            ConfigError: it does not fit the encoder or the choice.
        """
        counts = self.schedule.counts(spec, regcache)
        merge = Merge(counts, self.metric, self.proportional, self.compat)
        merge.check(spec, regcache, f"--merge {self.schedule.text}")
        return merge if any(counts) else None


@dataclass(frozen=True)
class Merge:
    """How one encoder merges its tokens.

    Attributes:
        counts: tokens that are merged away, per block.
        metric: by what similarity is measured.
        proportional: attention counts a token as often as it stands for patches: the logarithm of
            that number joins its logits. Pooling by mean or attention always does so.
        compat: the indexing of the published code of RegToMe, in simulation only: all tokens are
            matched, the class token is no source, and the last four destinations receive nothing,
            wherever the registers are.
    """

    counts: tuple[int, ...]
    metric: Metric = "keys"
    proportional: bool = False
    compat: bool = False

    def merged_before(self, block: int) -> bool:
        """Whether the tokens at the input of a block may stand for several patches."""
        return any(self.counts[:block])

    def by_keys(self, block: int) -> bool:
        """Whether a block's keys decide who is merged, so that they must stay as they are."""
        return self.metric == "keys" and self.counts[block] > 0

    def check(
        self, spec: EncoderSpec, regcache: RegCacheConfig | None = None, what: str = "the merge"
    ) -> None:
        """Raise ConfigError where it does not fit the encoder or the RegCache choice."""
        if self.metric not in get_args(Metric):
            raise ConfigError(f"{what}: metric '{self.metric}' is not keys or residual")
        if len(self.counts) != spec.depth:
            raise ConfigError(f"{what}: {len(self.counts)} counts for {spec.depth} blocks")
        if self.compat:
            _check_compat(spec, regcache, what)
        left = spec.num_patches
        for index, count in enumerate(self.counts):
            deleted = _deleted(regcache, index)
            if deleted and left <= deleted:
                raise ConfigError(
                    f"{what}: {left} patch tokens are left at block {index}, where RegCache "
                    f"deletes {deleted}, and at least one must stay; merge fewer before"
                )
            left -= deleted
            if not 0 <= count <= left // 2:
                raise ConfigError(
                    f"{what}: block {index} cannot merge {count} tokens; of the {left} patch "
                    f"tokens left there, it can merge 0 to {left // 2}"
                )
            left -= count

    def to_json(self) -> dict[str, Any]:
        return {
            "counts": list(self.counts),
            "metric": self.metric,
            "proportional": self.proportional,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Merge:
        """Inverse of `to_json`; raises BundleError on an unknown, missing or mistyped field."""
        what = "the merge"
        expect(what, data, dict, "an object")
        counts = data.get("counts")
        expect(f"{what}: counts", counts, list, "a list")
        for count in counts or ():
            expect(f"{what}: a count", count, int, "an integer")
        rest = {name: value for name, value in data.items() if name != "counts"}
        check_fields(what, rest, cls, absent=("counts", "compat"))
        if rest.get("metric", "keys") not in get_args(Metric):
            raise BundleError(f"{what} has metric = {rest['metric']!r}; take keys or residual")
        return cls(counts=tuple(counts or ()), **rest)


@dataclass(frozen=True)
class BlockTokens:
    """Tokens per image inside one block, leading tokens included.

    Attributes:
        attention: those that attention sees, without RegCache's cached keys.
        mlp: those that the MLP sees.
    """

    attention: int
    mlp: int


def block_tokens(
    spec: EncoderSpec, regcache: RegCacheConfig | None = None, merge: Merge | None = None
) -> list[BlockTokens]:
    """Tokens of every block: what deletion and merging leave."""
    blocks, left = [], spec.num_tokens
    for index in range(spec.depth):
        deleted = _deleted(regcache, index)
        first = deleted if regcache and regcache.delete_at == "block_input" else 0
        merged = merge.counts[index] if merge else 0
        blocks.append(BlockTokens(left - first, left - deleted - merged))
        left -= deleted + merged
    return blocks


def _deleted(regcache: RegCacheConfig | None, block: int) -> int:
    deletes = regcache is not None and regcache.deletes and regcache.delete_block == block
    return regcache.delete_count if regcache is not None and deletes else 0


def _check_compat(spec: EncoderSpec, regcache: RegCacheConfig | None, what: str) -> None:
    """The published code loses track of its registers, and so of what may be deleted or pooled."""
    if spec.pool != "cls" or spec.rotary:
        raise ConfigError(f"{what}: the published indexing needs pooling by a class token, no RoPE")
    if regcache is not None and regcache.deletes:
        raise ConfigError(f"{what}: the published indexing cannot tell which tokens to delete")
