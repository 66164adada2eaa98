"""What is kept, and why: figures against a contract, without a bundle."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from regcache_deploy.bench.timing import Interval
from regcache_deploy.contract.data import JudgeData, counted_drop, measure_drop
from regcache_deploy.contract.decide import (
    Contract,
    Decision,
    Drop,
    Measured,
    Skipped,
    decide,
    judge,
)
from regcache_deploy.contract.measure import refuse_mixed
from regcache_deploy.errors import ConfigError, DataError
from regcache_deploy.quantization.keep_float import FloatChoice
from regcache_deploy.report.contract import _figures
from regcache_deploy.report.verdict import kept_words
from tests.contract.measurements import FLOAT, GOOD, MIXED, SLOW, UNSURE, WORSE, measured


@pytest.mark.parametrize(
    ("candidates", "strict", "kept", "proven"),
    [
        ([GOOD], False, "int8", True),
        ([WORSE, MIXED], False, "mixed", True),
        ([WORSE, Skipped("mixed", "no use"), FLOAT], False, "float", True),
        ([SLOW, Skipped("mixed", "no use"), FLOAT], False, "float", True),
        ([UNSURE], False, "int8", False),
        ([UNSURE, MIXED], True, "mixed", True),
        ([UNSURE, UNSURE, FLOAT], True, "float", True),
        # the bounds belong to what is allowed
        ([measured("int8", (0.5, 0.5, 0.5), (1.02, 1.02, 1.02))], True, "int8", True),
    ],
)
def test_first_candidate_that_keeps_the_contract(candidates, strict, kept, proven):
    asked = []

    def attempt(candidate):
        def measure():
            asked.append(candidate)
            return candidate

        return measure

    never = [attempt(FLOAT)] * 2
    decision = decide([attempt(c) for c in candidates] + never, Contract(strict=strict))
    assert decision.kept.form == kept
    assert decision.verdicts[-1].proven is proven
    assert asked == candidates  # what comes behind is not measured
    document = decision.to_json()
    assert document["kept"] == kept
    assert [t["form"] for t in document["tried"]] == [c.form for c in candidates]
    assert all(t["reasons"] for t in document["tried"])
    json.dumps(document)


def test_a_loss_of_just_what_is_allowed_is_kept():
    """As floats, 100 * 7 / 500 is above 1.4."""
    before = torch.ones(500)
    after = before.clone()
    after[:7] = 0
    drop = counted_drop(before, after, 0, "top1", exact=True)
    assert drop.value > 1.4
    found = judge(Measured("int8", drop, Interval(2.0, 1.9, 2.1, 9)), Contract(max_drop=1.4))
    assert found.keep
    assert "of at most 1.4: kept" in found.reasons[0]
    pair = {"difference": -drop.value, "low": -drop.value, "high": 0.0}
    assert kept_words(pair, 1.4) == "yes"


def test_reasons_name_the_figure_and_the_bound():
    slow, worse = judge(SLOW, Contract()), judge(WORSE, Contract())
    assert slow.reasons[0] == "loses 0.20 points [0.10, 0.30], of at most 0.5: kept"
    assert slow.reasons[1].startswith("1.01 times as fast [1.00, 1.02], of at least 1.02")
    assert slow.reasons[1].endswith("not kept")
    assert worse.reasons[0].endswith("not kept")
    assert "not by the interval" in judge(UNSURE, Contract()).reasons[0]
    assert "not kept under --strict" in judge(UNSURE, Contract(strict=True)).reasons[0]


@pytest.mark.parametrize(
    ("candidate", "sentence"),
    [
        (
            measured("int8", speed=(1.0196, 1.0151, 1.0242)),
            "1.0196 times as fast [1.0151, 1.0242], of at least 1.02: not kept",
        ),
        (
            measured("int8", speed=(1.03, 1.0196, 1.04)),
            "1.0300 times as fast [1.0196, 1.0400], of at least 1.02: kept by the estimate, not by "
            "the interval",
        ),
        (
            measured("int8", (0.5004, 0.4, 0.6), (2.0, 1.9, 2.1)),
            "loses 0.5004 points [0.4000, 0.6000], of at most 0.5: not kept",
        ),
        (
            measured("int8", (-0.1, -0.3, 0.501), (2.0, 1.9, 2.1)),
            "gains 0.100 points [-0.501, 0.300], a loss of at most 0.5 is allowed: kept by the "
            "estimate, not by the interval",
        ),
        (
            Measured("int8", Drop(0.5004, 0.4, 0.6, 9, "cosine"), Interval(2.0, 1.9, 2.1, 9)),
            "cosine to the float file 0.994996 [0.994000, 0.996000], of at least 0.99500: not kept",
        ),
    ],
)
def test_no_figure_is_rounded_over_its_bound(candidate, sentence):
    assert sentence in judge(candidate, Contract()).reasons


def test_the_table_shows_a_figure_on_its_side_of_the_bound():
    document = decide(
        [lambda: measured("int8", (0.5004, 0.4, 0.6), (1.0196, 1.0, 1.04)), lambda: FLOAT],
        Contract(),
    ).to_json()
    figures = _figures(document["tried"][0], document["contract"])
    assert figures == ["0.5004 [0.4000, 0.6000]", "1.0196 [1.0000, 1.0400]"]


def test_float_file_must_come_last():
    with pytest.raises(ValueError, match="float file"):
        decide([lambda: WORSE], Contract())
    assert isinstance(decide([lambda: FLOAT], Contract()), Decision)


@pytest.mark.parametrize("values", [{"max_drop": -1}, {"max_drop": 101}, {"min_speedup": 0}])
def test_contract_out_of_range(values):
    with pytest.raises(ConfigError, match="out of range"):
        Contract(**values)


def test_drop_by_hand():
    head = torch.eye(3)
    reference = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [1.0, 0, 0]])
    found = reference.clone()
    found[1], found[3] = torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0])
    labels = torch.tensor([0, 1, 0, 1])  # the float file is wrong on the last two
    drop = measure_drop(reference, found, head, labels, 100.0, 0)
    assert (drop.value, drop.metric, drop.n) == (0.0, "top1", 4)  # one lost, one won
    assert drop.low < 0 < drop.high
    changed = measure_drop(reference, found, head, None, 100.0, 0)
    assert (changed.value, changed.metric) == (50.0, "changed")
    assert changed.low >= 0
    cosine = measure_drop(reference, found, None, None, 100.0, 0)
    assert (cosine.value, cosine.metric) == (50.0, "cosine")
    assert measure_drop(reference, reference, None, None, 100.0, 0).high == 0


def test_images_that_choose_do_not_judge():
    pixels = np.arange(16, dtype=np.uint8).reshape(16, 1, 1, 1).repeat(3, 3)
    data = JudgeData.split(pixels, torch.arange(16), "numbers")
    assert data.select_labels is not None
    assert data.judge_labels is not None
    assert data.select_labels.tolist() == data.select[:, 0, 0, 0].tolist()
    assert data.judge_labels.tolist() == data.judge[:, 0, 0, 0].tolist()
    assert sorted([*data.select_labels.tolist(), *data.judge_labels.tolist()]) == list(range(16))
    assert len(data.judge) == 8
    with pytest.raises(DataError, match="too few"):
        JudgeData.split(pixels[:5], None, "five")


def test_classes_that_take_turns_all_judge():
    """As a folder lists them: every second image would be of every second class."""
    labels = torch.arange(10).repeat(20)
    data = JudgeData.split(np.zeros((200, 1, 1, 3), np.uint8), labels, "ten classes")
    for half in (data.select_labels, data.judge_labels):
        assert half is not None
        assert len(half.unique()) == 10


def test_few_images_and_few_rounds_prove_nothing():
    same = torch.eye(3)
    drop = measure_drop(same, same, torch.eye(3), torch.arange(3), 100.0, 0)
    assert drop.value == 0
    assert drop.high == pytest.approx(100 * (1 - 0.025 ** (1 / 3)))  # 0 of 3, exactly
    assert drop.low == -drop.high
    many = torch.eye(3).repeat(1000, 1)
    changed = measure_drop(many, many, torch.eye(3), None, 100.0, 0)
    assert changed.low == 0 < changed.high < 0.2
    fast = replace(GOOD, speedup=Interval(5.0, 5.0, 5.0, 1))
    assert judge(fast, Contract()).keep
    assert not judge(fast, Contract(strict=True)).keep
    assert "in 1 rounds only" in judge(fast, Contract()).reasons[1]


def test_mixed_is_refused_where_it_would_be_another_candidate():
    assert "no linear in float" in refuse_mixed(FloatChoice(frozenset(), -0.1, True), 12)
    assert refuse_mixed(FloatChoice(frozenset({"a"}), -0.1, True), 12) == ""
    assert "1.60 points" in refuse_mixed(FloatChoice(frozenset({"a", "b"}), -1.6, False), 2)
    assert "all linears" in refuse_mixed(FloatChoice(frozenset({"a", "b"}), -0.1, True), 2)
