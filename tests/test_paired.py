"""Paired statistics: against scipy, and against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from regcache_deploy.evaluation import compare_paired


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
