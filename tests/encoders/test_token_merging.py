"""Merging in the simulation: who takes part, what a merged token is, and the published indexing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from regcache_deploy.encoders.canonical import Encoder
from regcache_deploy.encoders.merging import find_pairs, merge_as_published, merge_patches
from regcache_deploy.encoders.regcache import RegCacheConfig
from regcache_deploy.encoders.rotary import Survivors
from regcache_deploy.errors import ConfigError
from regcache_deploy.quantization.baselines import make_baseline
from regcache_deploy.quantization.plan import calibration_of, make_plan
from regcache_deploy.quantization.quantizers import Uniform
from regcache_export.merge import Merge
from tests.tiny_plans import CHOICE, float_calibration, tiny_encoder, tiny_images, tiny_regcache

MAP = {"pool": "map", "pool_heads": 3, "pool_width": 48, "pool_mlp_width": 40}


def counting_tokens(count: int) -> Tensor:
    """Token i is the i-th unit vector, so that a merged one names its parts."""
    return torch.eye(count)[None]


def merged(
    metric: Tensor, counts: tuple[int, ...], special: int, compat: bool = False
) -> tuple[Tensor, Tensor]:
    """Parts `[N', N]` of every token after merges in a row, and sizes of the patches."""
    parts, survivors = counting_tokens(metric.shape[1]), Survivors()
    for count in counts:
        rows = parts @ metric  # the metric of a merged token is the mean of its parts
        if compat:
            parts = merge_as_published(parts, rows, count, special, survivors)
        else:
            pairs = find_pairs(rows[:, special:], count)
            parts = merge_patches(parts, pairs, special, survivors)
    assert survivors.sizes is not None
    return parts[0], survivors.sizes[0]


def test_a_merged_token_is_the_mean_of_its_patches() -> None:
    generator = torch.Generator().manual_seed(0)
    metric = torch.randn(1, 19, 6, generator=generator)
    parts, sizes = merged(metric, (5, 3, 2), special=3)
    assert parts.shape == (9, 19)
    assert torch.equal(parts[:3], torch.eye(19)[:3])
    assert sizes.sum() == 16
    assert sizes.max() > 1
    for row, size in zip(parts[3:], sizes, strict=True):
        members = row > 0
        assert members.sum() == size
        torch.testing.assert_close(row[members], torch.full((int(size),), 1 / float(size)))
    assert torch.equal((parts > 0).sum(dim=0), torch.ones(19, dtype=torch.long))


def test_the_order_is_that_of_topk_and_argmax() -> None:
    # sources 0, 2, 4, 6; destinations 1, 3, 5, 7. Source 4 is nearest; 0 and 6 tie; 2 is far.
    # Source 6 is as near to destination 1 as to destination 7.
    vectors = torch.tensor([[1, 0], [0, 1], [0.6, 0.8]])
    places = [0, 1, 0, 0, 2, 2, 0, 1]
    metric = vectors[places][None].clone()
    metric[0, 2] = torch.tensor([-1.0, -0.1])
    metric[0, 0] = metric[0, 6] = torch.tensor([0.1, 1.0])
    pairs = find_pairs(metric, 2)
    assert pairs.order.tolist() == [[2, 0, 3, 1]]
    assert pairs.destinations.tolist() == [[2, 0]]
    assert find_pairs(metric, 3).destinations.tolist() == [[2, 0, 0]]
    parts = merge_patches(counting_tokens(8), pairs, 0, Survivors())[0]
    # the sources that stay, most similar first; then the destinations by place
    assert [row.nonzero().flatten().tolist() for row in parts] == [
        [6],
        [2],
        [0, 1],
        [3],
        [4, 5],
        [7],
    ]


def test_untouched_tokens_stay_bit_for_bit() -> None:
    tokens = torch.randn(2, 12, 7) * 100
    survivors = Survivors(sizes=torch.randint(1, 9, (2, 12)).float())
    pairs = find_pairs(torch.randn(2, 12, 5), 1)
    after = merge_patches(tokens, pairs, 0, survivors)
    for row in range(2):
        source, target = int(2 * pairs.order[row, 0]), int(2 * pairs.destinations[row, 0] + 1)
        others = [i for i in range(12) if i not in (source, target)]
        for index in others:
            assert (after[row] == tokens[row, index]).all(dim=1).any()


def test_zero_keys_are_no_reason_for_nan() -> None:
    assert find_pairs(torch.zeros(1, 6, 4), 1).similarity.isfinite().all()


class TestProtection:
    """Class token and registers take no part, however similar they are."""

    special = 5

    def metric(self) -> Tensor:
        """Registers and class token all alike, and every patch another direction."""
        value = torch.zeros(1, self.special + 16, 24)
        value[:, : self.special, 0] = 1
        value[0, self.special :, 1:17] = torch.eye(16)
        value[:, self.special :, 20] = 0.3
        return value

    def test_ours(self) -> None:
        parts, sizes = merged(self.metric(), (6, 3), self.special)
        assert torch.equal(parts[: self.special], torch.eye(21)[: self.special])
        assert sizes.sum() == 16

    def test_the_published_indexing_merges_registers_away(self) -> None:
        parts, sizes = merged(self.metric(), (6, 3), self.special, compat=True)
        registers = parts[:, 1 : self.special]
        alone = ((registers == 1).sum(dim=0) == 1).sum()
        assert alone < self.special - 1
        assert sizes.sum() == 21
        assert parts[0, 0] == 1  # the class token stays what it is, and in front

    def test_both_differ_in_an_encoder_with_registers(self) -> None:
        encoder = tiny_encoder(num_prefix_tokens=self.special)
        images = tiny_images(2)
        ours, theirs = (
            encoder.merging(Merge((2, 2, 0), compat=compat))(images) for compat in (False, True)
        )
        assert not torch.allclose(ours, theirs, rtol=0.01)

    def test_the_published_indexing_counts_all_tokens(self) -> None:
        """Sizes of all tokens join the logits, whose order the first merge has changed."""
        encoder = tiny_encoder(num_prefix_tokens=self.special)
        tokens, survivors = encoder.embed(tiny_images(2)), Survivors()
        counting = encoder.merging(Merge((2, 2, 0), proportional=True, compat=True))
        after = counting.run_blocks(tokens, survivors=survivors)
        assert survivors.sizes is not None
        assert survivors.sizes.shape == after.shape[:2]
        assert torch.equal(survivors.sizes.sum(dim=1), torch.full((2,), 17.0))

    def test_the_published_indexing_without_protected_tokens_in_the_way(self) -> None:
        """Only a class token, no merge among the last eight: the same pairs, the same result."""
        metric = torch.nn.functional.pad(torch.eye(16), (0, 0, 0, 0))[None]
        metric[0, 2] = metric[0, 1] + 0.1 * metric[0, 2]
        metric[0, 4] = metric[0, 3] + 0.2 * metric[0, 4]
        survivors = Survivors()
        parts = merge_as_published(counting_tokens(16), metric, 2, 1, survivors)[0]
        groups = {tuple(row.nonzero().flatten().tolist()) for row in parts}
        assert {(1, 2), (3, 4), (0,)} <= groups
        assert len(groups) == 14


def encoders() -> list[Any]:
    return [
        pytest.param({}, id="cls"),
        pytest.param({"num_prefix_tokens": 4}, id="registers"),
        pytest.param({"pool": "avg", "num_prefix_tokens": 0}, id="avg"),
        pytest.param({"pool": "avg", "pool_include_prefix": True}, id="avg with cls"),
        pytest.param(MAP, id="map"),
    ]


@pytest.mark.parametrize("changes", encoders())
def test_merging_equal_patches_changes_nothing(changes: dict[str, Any]) -> None:
    """m equal tokens are one with log(m) on its logits: patches in pairs of equal content.

    Every odd patch is a copy of the even one before it, so that all merges are exact.
    """
    encoder = tiny_encoder(**changes)
    special = encoder.spec.num_prefix_tokens
    tokens = encoder.embed(tiny_images(2))
    tokens[:, special + 1 :: 2] = tokens[:, special::2]
    plain = encoder.pool(encoder.run_blocks(tokens))
    counting = encoder.merging(Merge((3, 0, 0), proportional=True))
    survivors = Survivors()
    merged = counting.run_blocks(tokens, survivors=survivors)
    assert merged.shape[1] == tokens.shape[1] - 3
    torch.testing.assert_close(counting.pool(merged, survivors), plain, rtol=1e-4, atol=1e-4)
    other = encoder.merging(Merge((3, 0, 0), proportional=False))
    survivors = Survivors()
    without = other.pool(other.run_blocks(tokens, survivors=survivors), survivors)
    assert not torch.allclose(without, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("metric", ["keys", "residual"])
def test_pairs_are_no_matter_of_order_within_sources_and_destinations(metric: Any) -> None:
    """Sources among themselves, and destinations among themselves, may be permuted."""
    encoder = tiny_encoder().merging(Merge((4, 0, 0), metric))
    tokens = encoder.embed(tiny_images(1))
    patches = tokens[:, 1:].clone()
    patches[:, ::2] = patches[:, ::2][:, torch.randperm(6)]
    patches[:, 1::2] = patches[:, 1::2][:, torch.randperm(6)]
    permuted = torch.cat([tokens[:, :1], patches], dim=1)
    want, got = (encoder.pool(encoder.run_blocks(x)) for x in (tokens, permuted))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("place", ["block_input", "mlp_input"])
def test_a_deleted_token_is_in_no_merged_one(place: Any) -> None:
    """Block k deletes before it merges: what the sinks hold reaches nobody through a merge."""
    encoder = tiny_encoder()
    config = RegCacheConfig(0, 0, 1, 4, place)
    regcache = tiny_regcache(encoder, config)
    seen: list[Tensor] = []
    survivors = Survivors()

    class Watch(Encoder):
        def _pair(self, metric: Tensor, count: int) -> Any:
            seen.append(metric)
            return super()._pair(metric, count)

    watch = Watch(encoder.spec, encoder.weights, Merge((0, 4, 0), "residual"))
    tokens = encoder.embed(tiny_images(2))
    tokens[:, 2:6] *= 1000
    watch.block(1, tokens, regcache=regcache, survivors=survivors)
    (metric,) = seen
    assert metric.shape[1] == 8
    assert metric.abs().max() < 1000
    assert survivors.kept is not None
    assert survivors.sizes is not None
    assert not torch.isin(survivors.kept, torch.arange(1, 5)).any()
    assert torch.equal(survivors.sizes.sum(dim=1), torch.full((2,), 8.0))


def test_merged_tokens_keep_the_angle_of_their_destination() -> None:
    encoder = tiny_encoder(rotary=True)
    survivors = Survivors()
    merging = encoder.merging(Merge((4, 0, 0)))
    tokens = encoder.embed(tiny_images(1))
    after = merging.block(0, tokens, survivors=survivors)
    assert survivors.kept is not None
    assert survivors.sizes is not None
    assert sorted(survivors.kept[0, -6:].tolist()) == [1, 3, 5, 7, 9, 11]
    assert survivors.sizes[0, -6:].sum() == 10
    rows = torch.cat([torch.zeros(1, dtype=torch.long), survivors.kept[0] + 1])
    small = encoder.replace({"rotary": encoder.weights["rotary"]})
    table = encoder.weights["rotary"][rows]
    spec = replace(encoder.spec, image_size=(32, 16))  # 8 patches: as many as are left
    weights = {**small.weights, "rotary": table, "pos_embed": small.weights["pos_embed"][:9]}
    want = Encoder(spec, weights).block(1, after)
    torch.testing.assert_close(merging.block(1, after, survivors=survivors), want)


def test_blocks_one_by_one_and_in_one_walk_agree() -> None:
    encoder = tiny_encoder(pool="avg").merging(Merge((2, 2, 1), proportional=True))
    images = tiny_images(2)
    tokens, survivors = encoder.embed(images), Survivors()
    for index in range(3):
        tokens = encoder.block(index, tokens, survivors=survivors)
    assert torch.equal(encoder.pool(tokens, survivors), encoder(images))


def test_whoever_forgets_what_tokens_stand_for_is_told() -> None:
    encoder = tiny_encoder(pool="avg").merging(Merge((2, 2, 1)))
    tokens = encoder.run_blocks(encoder.embed(tiny_images(1)), stop=1)
    with pytest.raises(ValueError, match="merged before block 1"):
        encoder.block(1, tokens)
    with pytest.raises(ValueError, match="merged before block 3"):
        encoder.pool(tokens)


@pytest.mark.parametrize("baseline", ["naive", "ptq4vit", "repqvit"])
def test_baselines_calibrate_with_the_merge_in_place(baseline: str) -> None:
    encoder = tiny_encoder(pool="avg").merging(Merge((3, 3, 1)))
    tokens = encoder.embed(tiny_images(6))
    whole = make_baseline(baseline).calibrate(encoder, tokens)
    assert whole.encoder.merge == encoder.merge
    images = tiny_images(4)
    found = whole.encoder(images, whole.numerics())
    same = torch.nn.functional.cosine_similarity(found, encoder(images), dim=-1)
    assert same.min() > 0.9
    if baseline == "naive":  # from the middle on, with what is known of the tokens
        survivors = Survivors()
        later = encoder.run_blocks(tokens, stop=1, survivors=survivors)
        sizes = survivors.sizes
        rest = make_baseline(baseline).calibrate(encoder, later, 1, survivors=survivors)
        assert survivors.sizes is sizes
        for name, layer in rest.quantization.linears.items():
            known = whole.quantization.linears[name].input
            assert isinstance(layer.input, Uniform)
            assert isinstance(known, Uniform)
            torch.testing.assert_close(layer.input.scale, known.scale)


def test_the_key_bias_stays_where_keys_pair_tokens() -> None:
    encoder = tiny_encoder()
    tokens = encoder.embed(tiny_images(4))
    images = tiny_images(3)
    for merge, kept in ((Merge((4, 0, 0)), [True, False, False]), (None, [False] * 3)):
        folded = make_baseline("naive").calibrate(encoder.merging(merge), tokens).encoder
        width = encoder.spec.width
        biases = [folded.weights[f"blocks.{i}.attn.qkv.bias"][width : 2 * width] for i in range(3)]
        assert [bool(bias.any()) for bias in biases] == kept
        torch.testing.assert_close(
            folded(images), encoder.merging(merge)(images), rtol=1e-3, atol=1e-3
        )


def test_plan_and_back() -> None:
    encoder = tiny_encoder().merging(Merge((2, 1, 0), "residual", True))
    choice = tiny_regcache(encoder)
    plan = make_plan(float_calibration(encoder, choice), regcache_config=CHOICE)
    assert plan.merge == encoder.merge
    back = calibration_of(plan)
    images = tiny_images(2)
    want = encoder(images, regcache=choice)
    torch.testing.assert_close(back.encoder(images, regcache=back.regcache), want)


def test_the_published_indexing_is_only_simulated() -> None:
    encoder = tiny_encoder().merging(Merge((2, 1, 0), compat=True))
    with pytest.raises(ConfigError, match="only simulated"):
        make_plan(float_calibration(encoder))
    for changes, config in (({"pool": "avg"}, None), ({"rotary": True}, None), ({}, CHOICE)):
        spec = replace(encoder.spec, **changes)
        with pytest.raises(ConfigError, match="published indexing"):
            Merge((2, 1, 0), compat=True).check(spec, config)


def test_what_does_not_fit_is_refused() -> None:
    encoder = tiny_encoder()
    tokens = encoder.embed(tiny_images(2))
    with pytest.raises(ConfigError, match="2 counts for 3 blocks"):
        encoder.merging(Merge((2, 2)))
    with pytest.raises(ConfigError, match="block 1 cannot merge 4 tokens; of the 6"):
        encoder.merging(Merge((6, 4, 0)))
    for merge, why in (
        (Merge((6, 2, 0)), "block 1 cannot merge 2 tokens; of the 2"),
        (Merge((2, 0, 0), compat=True), "published indexing cannot tell"),
    ):
        merging, choice = encoder.merging(merge), tiny_regcache(encoder)
        with pytest.raises(ConfigError, match=why):
            merging.run_blocks(tokens, regcache=choice)
        with pytest.raises(ConfigError, match=why):
            make_baseline("naive").calibrate(merging, tokens, regcache=choice)
