"""Who gets which job, and how many workers a cluster has room for. Needs no Ray."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest
import torch

from regcache_deploy.errors import ConfigError
from regcache_deploy.work.ray_team import _Waiting, open_team, rooms_of


def node(alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"Alive": alive, "Resources": resources}


@pytest.mark.parametrize(
    ("nodes", "threads", "gpus", "rooms"),
    [
        ([node(CPU=3.0), node(CPU=3.0)], 2, 0, [1, 1]),  # six CPUs, but no third worker
        ([node(CPU=16.0), node(CPU=4.0), node(memory=1.0)], 4, 0, [4, 1]),
        ([node(CPU=16.0), node(alive=False, CPU=16.0)], 8, 0, [2]),
        ([node(CPU=4.0, GPU=8.0), node(CPU=64.0, GPU=2.0), node(CPU=64.0)], 1, 1, [4, 2]),
        ([node(CPU=1.0)], 2, 0, []),
    ],
)
def test_no_worker_lies_on_two_machines(
    nodes: list[dict[str, Any]], threads: int, gpus: int, rooms: list[int]
) -> None:
    assert rooms_of(nodes, threads, gpus) == rooms


def test_the_last_job_is_left_to_a_worker_that_is_there() -> None:
    waiting = _Waiting("abcd", [0, 1, 1, 1])
    taken = [waiting.take(0, away=()) for _ in range(4)]
    assert taken == [(0, "a"), (3, "d"), (2, "c"), None]
    assert waiting.take(1, away=()) == (1, "b")


def test_no_job_waits_for_a_worker_that_never_comes() -> None:
    waiting = _Waiting("abcd", [0, 1, 2, 2])
    taken = [waiting.take(0, away={2}) for _ in range(4)]
    assert taken == [(0, "a"), (3, "d"), (2, "c"), None]  # that of 1 is left to it
    assert waiting.take(1, away={2}) == (1, "b")
    assert not waiting


@pytest.mark.parametrize(("workers", "mode"), [("2", "token"), ("auto", None)])
def test_processes_of_its_own_ask_for_a_token(
    workers: str, mode: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They listen on every interface; a cluster has settings of its own."""
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setenv("RAY_AUTH_MODE", "")  # so that it is as it was behind the test
    monkeypatch.delenv("RAY_AUTH_MODE")
    with pytest.raises(ConfigError, match="ray"), open_team(workers, torch.device("cpu"), 1):
        pass
    assert os.environ.get("RAY_AUTH_MODE") == mode
