"""Paired statistics: against scipy, and against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from regcache_deploy.evaluation import compare_paired
from regcache_deploy.evaluation.paired import compare_answers


def test_flips_and_p_value() -> None:
    reference = np.array([1] * 70 + [0] * 30)
    model = reference.copy()
    model[:12] = 0
    model[-3:] = 1
    got = compare_paired(reference, model)
    assert (got.n, got.lost, got.won) == (100, 12, 3)
    assert got.difference == pytest.approx(-9.0)
    assert got.p_value == pytest.approx(binomtest(3, 15).pvalue)
    assert got.low < -9 < got.high < 0


def test_equal_models_differ_by_nothing() -> None:
    got = compare_paired([1, 0, 1], [1, 0, 1])
    assert (got.difference, got.low, got.high, got.p_value) == (0, 0, 0, 1)


def test_interval_covers_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    truth, covered = -3.0, 0
    for seed in range(200):
        change = generator.choice([-1, 0, 1], p=[0.06, 0.91, 0.03], size=600)
        got = compare_paired(np.ones(600), 1 + change, seed)
        covered += got.low <= truth <= got.high
    assert covered >= 180  # 190 expected; P(X < 180) < 0.3 % if the interval is right


def test_one_answer_per_image_is_the_paired_comparison() -> None:
    generator = np.random.default_rng(1)
    reference, model = generator.integers(0, 2, (2, 400))
    want = compare_paired(reference, model)
    got = compare_answers(model - reference, np.ones(400), seed=3)
    assert (got.n, got.lost, got.won, got.p_value) == (400, want.lost, want.won, want.p_value)
    assert got.difference == pytest.approx(want.difference)
    assert (got.low, got.high) == pytest.approx((want.low, want.high), abs=0.5)


def test_five_answers_of_an_image_are_not_five_images() -> None:
    """All captions of an image turn together: the interval covers, and p is small, as by image."""
    generator = np.random.default_rng(0)
    truth, covered, small = -3.0, 0, 0
    for seed in range(200):
        change = 5 * generator.choice([-1, 0, 1], p=[0.06, 0.91, 0.03], size=600)
        got = compare_answers(change, np.full(600, 5), seed)
        covered += got.low <= truth <= got.high
        even = 5 * generator.choice([-1, 0, 1], p=[0.05, 0.9, 0.05], size=600)
        small += compare_answers(even, np.full(600, 5), seed).p_value < 0.05
    assert covered >= 180
    assert small <= 19  # at most 10 expected; P(X > 19) < 0.4 %


def test_images_count_by_their_answers() -> None:
    got = compare_answers([-2, 1, 0, 1], [4, 1, 2, 1])
    assert (got.n, got.lost, got.won) == (4, 1, 2)
    assert got.difference == 0.0
    assert compare_answers([0, 0], [5, 5]).p_value == 1
