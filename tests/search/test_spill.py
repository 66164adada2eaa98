"""Hidden states on disk: the same answers, bounded, and nothing left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from regcache_deploy.search.spill import ROWS, Rows, Spill, file_slab, memory_slab
from regcache_deploy.search.states import Budget, HiddenStates
from regcache_deploy.work import memory
from regcache_deploy.work.count import Work

BYTES = 4 * 6


@pytest.mark.parametrize("on_disk", [False, True])
def test_rows_come_back_as_they_were(on_disk: bool, tmp_path: Path) -> None:
    rows = Rows(
        lambda row: file_slab(row, tmp_path) if on_disk else memory_slab(row, torch.device("cpu"))
    )
    values = torch.randn(ROWS + 3, 2, 3)
    for index in reversed(range(len(values))):
        rows[10 * index] = values[index]
    rows[0] = values[5]
    assert torch.equal(rows[10 * (ROWS + 2)], values[-1])
    assert torch.equal(rows[0], values[5])
    assert len(rows) == len(values)
    assert 1 not in rows
    assert not os.listdir(tmp_path), "a file without a name goes with the process"


def test_a_device_holds_no_more_than_its_rows() -> None:
    """On the CPU pages are taken when they are written; elsewhere when they are asked for."""
    assert memory_slab((2, 3), torch.device("meta")).shape == (1, 2, 3)
    rows = Rows(lambda row: torch.empty(1, *row))
    for index in range(3):
        rows[index] = torch.full((2,), float(index))
    assert [rows[index].tolist() for index in range(3)] == [[0, 0], [1, 1], [2, 2]]


def states(budget: int, spill: Spill) -> tuple[HiddenStates, list[tuple[int, int, int]]]:
    ran: list[tuple[int, int, int]] = []

    def run(tokens: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        ran.append((len(tokens), start, stop))
        return tokens + (stop - start)

    def embed(rows: torch.Tensor) -> torch.Tensor:
        return rows.view(-1, 1, 1).expand(-1, 2, 3).float()

    return HiddenStates(embed, run, BYTES, Budget(budget), Work(), 4, spill), ran


@pytest.mark.parametrize("held", [0, 3, 100])
def test_what_memory_has_no_room_for_is_read_from_disk(held: int, tmp_path: Path) -> None:
    rows = torch.arange(10)
    kept, ran = states(held * BYTES, Spill(tmp_path, 1000 * BYTES))
    kept.book(3, rows)
    first = kept.at(3, rows)
    assert torch.equal(first, rows.view(-1, 1, 1).expand(-1, 2, 3) + 3.0)
    before = list(ran)
    assert torch.equal(kept.at(3, rows.flip(0)), first.flip(0))
    assert ran == before, "no state is computed twice"
    kept.book(5, rows)
    assert torch.equal(kept.at(5, rows), first + 2)
    assert {start for _, start, _ in ran[len(before) :]} == {3}, "from the nearest earlier block"
    assert kept.budget.used == min(held, 20) * BYTES
    assert kept.spill.used == (20 - min(held, 20)) * BYTES
    assert kept.work.block_forwards == 10 * 3 + 10 * 2


def test_the_disk_is_bounded_too(tmp_path: Path) -> None:
    rows = torch.arange(10)
    kept, ran = states(2 * BYTES, Spill(tmp_path, 3 * BYTES))
    kept.book(3, rows)
    first = kept.at(3, rows)
    count = sum(n for n, _, _ in ran)
    assert torch.equal(kept.at(3, rows), first)
    assert sum(n for n, _, _ in ran) == count + 5, "five of ten are computed anew"
    assert (kept.budget.used, kept.spill.used) == (2 * BYTES, 3 * BYTES)


def test_memory_keeps_to_the_containers_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "memory_limit", lambda: 2**30)
    assert memory.image_memory() == 2**29
    monkeypatch.setattr(memory, "memory_limit", lambda: None)
    assert memory.image_memory() > 2**29
    assert memory.free_disk(tmp_path / "not" / "there") > 0
