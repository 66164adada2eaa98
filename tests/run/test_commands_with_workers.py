"""`eval`, `calibrate` and `embed` by workers find what one process finds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from regcache_deploy.cli.main import main
from regcache_deploy.work import ray_team
from tests.pickled_team import PickledTeam
from tests.worker_commands import COMMANDS, found_by, write_run

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_run(folder)
    return folder


@pytest.fixture
def team(monkeypatch: pytest.MonkeyPatch) -> PickledTeam:
    """Takes the place of Ray."""
    found = PickledTeam(2)

    @contextmanager
    def open_team(workers: str | None, *others: Any) -> Iterator[PickledTeam | None]:
        yield None if workers is None else found

    monkeypatch.setattr(ray_team, "open_team", open_team)
    for room in ("evaluation.crew", "run.calibrate"):
        monkeypatch.setattr(f"regcache_deploy.{room}.open_team", open_team)
    for command in COMMANDS:
        monkeypatch.setattr(f"regcache_deploy.cli.{command}.require_workers", lambda word: None)
    return found


@pytest.mark.parametrize(
    ("command", "jobs", "stations"),
    [
        ("eval", 5, 1),  # batches of three, for all runners in torch at once
        ("calibrate", 10, 1),  # two passes
        ("embed", 4, 1),  # parts
    ],
)
def test_workers_find_what_one_process_finds(
    command: str,
    jobs: int,
    stations: int,
    run: Path,
    team: PickledTeam,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    alone = found_by(command, run, tmp_path / "alone", capsys)
    assert not team.asked
    together = found_by(command, run, tmp_path / "together", capsys, "--workers", "2")
    assert (team.asked, team.stations) == (jobs, stations)
    assert together == alone
    if command != "eval":
        assert alone[1]


def test_a_second_data_set_does_not_send_the_encoder_again(
    run: Path, team: PickledTeam, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    more = ("--workers", "2", "--transfer", str(run / "data"))
    found_by("eval", run, tmp_path, capsys, *more)
    assert (team.asked, team.stations) == (10, 1)


def test_workers_without_anything_to_do_are_refused(
    run: Path, team: PickledTeam, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", str(run / "t.regcache"), "--data", str(run / "data"), "-q"]
    assert main([*words, "--workers", "2"]) == 2
    assert "--on names engines only" in capsys.readouterr().err
