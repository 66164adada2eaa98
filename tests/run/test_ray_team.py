"""Workers in processes of their own: lost ones, errors, and a whole search. Needs Ray."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from regcache_deploy.cli.main import main
from regcache_deploy.errors import ConfigError, DataError, RegCacheError
from regcache_deploy.work.ray_team import RayTeam, open_team
from regcache_deploy.work.workers import Team
from tests.adding_station import Adding
from tests.worker_commands import COMMANDS, found_by, write_run

if find_spec("ray") is None:  # not imported here: it is told to be silent before
    pytest.skip("Ray is not installed: pip install '.[scale]'", allow_module_level=True)

CPU = torch.device("cpu")


def test_no_cluster_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with (
        pytest.raises(ConfigError, match="Ray cannot be reached"),
        open_team("auto", CPU, 1),
    ):
        pass


SMALL = ["--baseline", "naive", "--bits", "W4A4", "--search-images", "32", "--threads", "1"]
SMALL += ["--calibration-images", "8", "--limit", "4", "--batch-size", "16", "-q", "--json"]


def searched(folder: Path, capsys: Any, *more: str) -> dict[str, Any]:
    """The JSON of a search, without times and the word of `--workers`."""
    assert main(["search", *SMALL, "--output", str(folder), *more]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    del document["seconds"], document["results_csv"]
    for name in ("seconds", "peak_memory_bytes"):
        del document["search_cost"][name]
    return document


def test_a_search_with_a_worker_killed_in_the_middle_is_the_search_without(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = searched(tmp_path / "alone", capsys)
    killed: list[int] = []
    original = RayTeam.answers

    def answers(self: RayTeam, station: Any, jobs: Any, homes: Any = ()) -> Iterator[Any]:
        found = original(self, station, jobs, homes)
        for count, each in enumerate(found):
            if count == 3 and not killed:
                process = self.processes()[0]
                os.kill(process, signal.SIGKILL)
                killed.append(process)
            yield each

    monkeypatch.setattr(RayTeam, "answers", answers)
    together = searched(tmp_path / "together", capsys, "--workers", "2")
    assert killed
    assert together == alone


@pytest.mark.parametrize("command", COMMANDS)
def test_two_processes_find_what_one_finds(command: str, tmp_path: Path, capsys: Any) -> None:
    write_run(tmp_path)
    alone = found_by(command, tmp_path, tmp_path / "alone", capsys)
    together = found_by(command, tmp_path, tmp_path / "together", capsys, "--workers", "2")
    assert together == alone


@pytest.fixture(scope="module")
def team() -> Iterator[Team]:
    with open_team("2", CPU, threads=1) as found:
        assert found is not None
        yield found


def test_every_job_is_answered_by_one_of_two_processes(team: Team) -> None:
    for number in (10, 20):
        station = Adding(number)
        for count in (1, 30):
            answers = dict(team.answers(station, range(count)))
            assert {job: total for job, (total, _) in answers.items()} == {
                job: number + job for job in range(count)
            }
    assert os.getpid() not in {process for _, process in answers.values()}


def test_the_job_of_a_lost_worker_goes_to_another(team: Team, tmp_path: Path) -> None:
    station = Adding(0, once=tmp_path / "killed")
    answers = dict(team.answers(station, range(12)))
    assert (tmp_path / "killed").exists()
    assert [answers[job][0] for job in range(12)] == list(range(12))
    assert len(dict(team.answers(station, range(20)))) == 20


def test_a_job_that_ends_every_worker_ends_the_run(team: Team) -> None:
    with pytest.raises(RegCacheError, match="a job ended 3 workers"):
        list(team.answers(Adding(0), [1, 99, 2]))
    assert [total for _, (total, _) in team.answers(Adding(5), [1])] == [6]


def test_an_error_of_a_worker_keeps_its_kind(team: Team) -> None:
    with pytest.raises(DataError, match=r"^thirteen is no job$"):
        list(team.answers(Adding(0), [1, 1313, 2, 4]))
    assert dict(team.answers(Adding(0), [1, 2]))[1][0] == 2
    with pytest.raises(OSError, match="No space left") as found:  # as the command line knows it
        list(team.answers(Adding(0), [1, 2828]))
    assert (found.value.errno, found.value.filename) == (errno.ENOSPC, "part.npy")


def test_sigterm_stays_with_who_had_it() -> None:
    code = (
        "import os, signal, torch\n"
        "from regcache_deploy.work.ray_team import open_team\n"
        "seen = []\n"
        "signal.signal(signal.SIGTERM, lambda *_: seen.append(1))\n"
        "with open_team('1', torch.device('cpu'), 1):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    assert seen == [1]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "SIGTERM received" not in done.stderr  # Ray's stack, three seconds before it aborts
