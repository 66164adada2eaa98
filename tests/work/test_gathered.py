"""Rows in one array, as they come."""

from __future__ import annotations

import pytest
import torch

from regcache_deploy.work.gathered import Gathered


@pytest.mark.parametrize("shape", [(), (3,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bool])
def test_rows_are_those_of_a_concatenation(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    parts = [torch.rand(n, *shape).mul(2).to(dtype) for n in (4, 4, 1, 0, 30, 2)]
    gathered, before = Gathered(), []
    for part in parts:
        gathered.add(part)
        before.append(gathered.rows)
    assert torch.equal(gathered.rows, torch.cat(parts))
    assert gathered.rows.dtype == dtype
    for count, rows in enumerate(before, 1):
        assert torch.equal(rows, torch.cat(parts[:count])), "later rows change no earlier view"


def test_it_keeps_a_copy() -> None:
    gathered, rows = Gathered(), torch.ones(2)
    gathered.add(rows)
    rows.zero_()
    assert gathered.rows.tolist() == [1, 1]


def test_nothing_came() -> None:
    assert len(Gathered().rows) == 0
