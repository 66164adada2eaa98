"""Search, race of the ways and held-out images by workers: what one process finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regcache_deploy.run.options import ExportOptions
from regcache_deploy.run.study import Study, run_study
from regcache_deploy.work.progress import Reporter
from tests.pickled_team import PickledTeam

TIMES = {"seconds": 0, "peak_memory_bytes": 0}


def said(study: Study) -> dict[str, Any]:
    """The JSON of a study without its times, and every feature."""
    document = study.result(agreement={}, differences=(), results_csv=Path("x")).to_json()
    document["search_cost"] |= TIMES
    features = {name: value.tolist() for name, value in study.features.items()}
    return document | TIMES | {"features": features, "operators": study.held_out.operators}


def test_a_study_with_workers_is_the_study_without(tmp_path: Path) -> None:
    options = ExportOptions(
        baseline="naive",
        bits="W4A4",
        recipe="auto",
        search_images=16,
        calibration_images=4,
        limit=4,
        batch_size=8,
        threads=1,
    )
    quiet, team = Reporter(quiet=True), PickledTeam(2)
    alone = run_study(options, quiet, tmp_path / "alone")
    together = run_study(options, quiet, tmp_path / "together", team=team)
    assert said(together) == said(alone)
    # sensitivity, candidates, trials, ways, held-out corners
    assert team.stations == 5
    parts = {path.name for path in (tmp_path / "alone").iterdir()}
    assert parts == {path.name for path in (tmp_path / "together").iterdir()}
