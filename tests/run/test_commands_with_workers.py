"""`eval`, `calibrate` and `embed` by workers find what one process finds."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regcache_deploy.cli.main import main
from regcache_deploy.data.embedding_files import EmbeddingFolder
from regcache_deploy.data.stream import Batch
from regcache_deploy.errors import DataError
from regcache_deploy.evaluation.crew import Crew, Simulations
from regcache_deploy.run import embed_parts
from regcache_deploy.work import ray_team
from regcache_engines.preprocess import Preprocess
from tests.pickled_team import PickledTeam
from tests.tiny_plans import PREPROCESS
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


def other_folder(monkeypatch: pytest.MonkeyPatch, other: Path) -> None:
    """Workers write into a folder of their own, as on a machine that shares nothing."""
    original = EmbeddingFolder.write
    EmbeddingFolder(other, 1, "jsonl").begin({})

    def write(self: EmbeddingFolder, *values: Any) -> None:
        original(EmbeddingFolder(other, self.digits, self.form), *values)

    monkeypatch.setattr(EmbeddingFolder, "write", write)


def other_bundle(monkeypatch: pytest.MonkeyPatch, other: Path) -> None:
    monkeypatch.setattr(embed_parts, "hashes_of", lambda bundle: {"model.onnx": "another"})


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (other_folder, "the folder must be one that all workers share"),
        (other_bundle, "is another bundle on a worker's machine"),
    ],
)
def test_a_machine_that_sees_something_else_ends_the_run(
    change: Callable[[pytest.MonkeyPatch, Path], None],
    line: str,
    run: Path,
    team: PickledTeam,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change(monkeypatch, tmp_path / "other")
    assert embed(run, tmp_path / "output") == DataError.exit_code
    assert line in capsys.readouterr().err


def test_relative_paths_need_the_drivers_folder_and_others_do_not(
    run: Path,
    team: PickledTeam,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def nowhere(path: Path) -> None:
        raise FileNotFoundError(2, "No such file or directory", str(path))

    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(os, "chdir", nowhere)
        assert embed(run, tmp_path / "output") == 0
        assert embed(run, Path("relative")) == DataError.exit_code
    assert "where relative would be; pass absolute paths" in capsys.readouterr().err


def test_a_slow_worker_does_not_keep_the_pixels_of_others(run: Path) -> None:
    """What waits for the first answer are names and embeddings."""
    alive: list[weakref.ref[Batch]] = []

    class Backwards(PickledTeam):
        def answers(self, station: Any, jobs: Any, homes: Any = ()) -> Iterator[Any]:
            for place, _ in reversed(list(enumerate(alive_jobs(jobs)))):
                yield place, {}

    def alive_jobs(jobs: Any) -> Iterator[None]:
        for job in jobs:
            alive.append(weakref.ref(job))
            yield None

    def batches() -> Iterator[Batch]:
        for index in range(6):
            yield Batch(
                np.zeros((1, 8, 8, 3), np.uint8), (str(index),), None, Preprocess(PREPROCESS)
            )

    names = []
    for (keys, _), _ in Crew(Backwards(2), Simulations({})).answered(batches(), []):
        gc.collect()
        names.append(keys)
        assert sum(each() is not None for each in alive) <= 1
    assert names == [(str(index),) for index in range(6)]


def embed(run: Path, output: Path) -> int:
    words = ["embed", str(run / "t.regcache"), "--data", str(run / "data"), "--output", str(output)]
    words += ["--part-images", "4", "--metadata", "jsonl", "--decoders", "1", "--threads", "1"]
    return main([*words, "--json", "-q", "--workers", "2"])
