"""How many tokens each block merges: published schedules, caps, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from regcache_export.errors import BundleError, ConfigError
from regcache_export.merge import Merge, MergeOptions, MergeSchedule, block_tokens
from regcache_export.plan import Plan
from regcache_export.regcache_config import RegCacheConfig
from regcache_export.spec import EncoderSpec
from tests.tiny_plans import tiny_plan

SEED = EncoderSpec(
    image_size=(224, 224),
    patch_size=(16, 16),
    width=384,
    depth=12,
    heads=6,
    mlp_width=1536,
    output_dim=384,
    num_prefix_tokens=5,
    pool="avg",
)
"""The encoder of the published table: CLS, 196 patches, four registers. Pooled by its mean, so
that its last block merges, too."""

B16 = replace(SEED, num_prefix_tokens=1, pool="cls")


def behind(text: str, spec: EncoderSpec = SEED) -> list[int]:
    """Tokens behind every block."""
    counts = MergeSchedule.parse(text).counts(spec)
    return [block.mlp for block in block_tokens(spec, merge=Merge(counts))]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("16", [185, 169, 153, 137, 121, 105, 89, 73, 57, 41, 25, 15]),
        ("(16,0)", [185, 169, 153, 137, 121, 105, 89, 73, 57, 41, 25, 15]),
        ("(16,-1)", [169, 140, 114, 91, 71, 54, 40, 29, 21, 16, 14, 14]),
        ("(16, 1)", [201, 199, 194, 186, 175, 161, 144, 124, 101, 75, 46, 26]),
    ],
)
def test_the_published_schedules_leave_the_published_tokens(text: str, tokens: list[int]) -> None:
    assert behind(text) == tokens


def test_listed_counts_are_padded_and_a_cut_is_one_merge() -> None:
    assert MergeSchedule.parse("8,8,0,4").counts(B16) == (8, 8, 0, 4, *[0] * 8)
    assert MergeSchedule.parse("3:69").counts(B16) == (0, 0, 0, 69, *[0] * 8)
    assert MergeSchedule.parse("(8,-1)").counts(B16) == (16, 14, 13, 11, 10, 8, 7, 5, 4, 2, 1, 0)


def test_every_other_block_leaves_as_many_tokens_with_half_of_the_merges() -> None:
    assert MergeSchedule.parse("16/2").counts(SEED) == (16, 0) * 6
    assert behind("16/2")[1::2] == behind("8")[1::2]
    assert all(few <= many for few, many in zip(behind("16/2"), behind("8"), strict=True))
    assert MergeSchedule.parse("16 / 2").counts(B16) == (16, 0) * 6
    assert MergeSchedule.parse("8/1").counts(B16) == MergeSchedule.parse("8").counts(B16)
    assert MergeSchedule.parse("90/5").counts(SEED) == (90, *[0] * 4, 53, *[0] * 4, 26, 0)


def test_nothing_merges_behind_the_last_attention_of_a_class_token() -> None:
    assert MergeSchedule.parse("8").counts(B16) == (*[8] * 11, 0)
    assert MergeSchedule.parse("11:8").counts(B16) == (0,) * 12
    assert MergeOptions(MergeSchedule.parse("11:8")).of(B16) is None
    assert MergeOptions(MergeSchedule.parse("0")).of(B16) is None


def test_named_schedules_are_capped_where_a_deletion_leaves_fewer() -> None:
    choice = RegCacheConfig(0, 0, 2, 150)
    counts = MergeSchedule.parse("16").counts(B16, choice)
    assert counts[:6] == (16, 16, 7, 3, 2, 1)  # 196 - 32 - 150 = 14 are left in block 2
    assert block_tokens(B16, choice, Merge(counts))[-1].mlp == 2


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("-1", "cannot merge -1"),
        ("(-8,-1)", "cannot merge -8"),
        ("8,-2", r'cannot merge -2 tokens; the growing or shrinking schedule is "\(8,-2\)"'),
        ("3:-4", "cannot merge -4"),
        ("(16,-2)", "F is out of range"),
        ("-8/2", "cannot merge -8"),
        ("8/0", "N is out of range; take 1 or more"),
        ("8/-2", "is no schedule"),
        ("1,\x1f3", "is no schedule"),  # a space to `re`, and none to `int`
        ("a", "is no schedule; take R"),
        ("", "is no schedule"),
        ("3:4:5", "is no schedule"),
        ("3:99", "block 3 cannot merge 99 tokens; of the 196 patch tokens left there"),
        ("98,98", "block 1 cannot merge 98 tokens; of the 98 patch"),
        ("1," * 12 + "1", "13 counts for 12 blocks"),
        ("12:4", r"this encoder has blocks 0..11, not 12"),
    ],
)
def test_what_does_not_fit_is_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        MergeOptions(MergeSchedule.parse(text)).of(B16)


def test_a_cut_that_leaves_fewer_tokens_than_are_deleted_is_refused() -> None:
    choice = RegCacheConfig(6, 4, 6, 98)
    with pytest.raises(ConfigError, match=r"98 patch tokens are left at block 6.* deletes 98"):
        MergeSchedule.parse("3:98").counts(B16, choice)
    assert MergeSchedule.parse("3:97").counts(B16, choice)[3] == 97


def test_tokens_of_a_block_with_deletion_and_merge() -> None:
    for place, attention in (("block_input", 197 - 8 - 5), ("mlp_input", 197 - 8)):
        choice = RegCacheConfig(0, 3, 1, 5, place)  # type: ignore[arg-type]
        blocks = block_tokens(B16, choice, Merge((8, 4, *[0] * 10)))
        assert (blocks[0].attention, blocks[0].mlp) == (197, 189)
        assert (blocks[1].attention, blocks[1].mlp) == (attention, 180)


def test_a_plan_carries_its_merge(tmp_path: Path) -> None:
    plan = replace(tiny_plan(), merge=Merge((2, 1, 0), "residual", True))
    plan.save(tmp_path)
    assert Plan.load(tmp_path).merge == plan.merge
    replace(plan, merge=None).save(tmp_path)
    assert Plan.load(tmp_path).merge is None


def test_a_reader_that_knows_no_merge_is_told(tmp_path: Path) -> None:
    """By the schema: it would leave the merge out without a word."""
    plan = replace(tiny_plan(), merge=Merge((2, 1, 0)))
    plan.save(tmp_path)
    text = (tmp_path / "plan.json").read_text()
    assert '"schema": 2' in text
    (tmp_path / "plan.json").write_text(text.replace('"schema": 2', '"schema": 1'))
    with pytest.raises(BundleError, match="schema 1"):
        Plan.load(tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        {"counts": 8},
        {"counts": [1, "2"]},
        {"counts": [1], "metric": "values"},
        {"counts": [1], "proportional": 1},
        {"counts": [1], "more": 1},
        {"metric": "keys"},
        [],
    ],
)
def test_damaged_json_is_refused(data: object) -> None:
    with pytest.raises(BundleError):
        Merge.from_json(data)  # type: ignore[arg-type]
