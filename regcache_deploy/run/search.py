"""`regcache search`: from options to a run folder with the decision and everything behind it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..encoders.load import LoadedModel
from ..report.result import ExportResult, write_trials
from ..search.ablation import run_ablation, write_ablation
from ..search.settings import REGCACHE
from ..work.json_file import write_json
from ..work.paths import DETAILS
from ..work.progress import Reporter
from ..work.workers import Team
from .account import account_of
from .details import details_of, draw
from .merging import write_front
from .options import ExportOptions
from .study import Study, run_study, team_of


@torch.no_grad()
def run_search(
    options: ExportOptions,
    reporter: Reporter,
    ablation: bool = False,
    parts: Path | None = None,
    model: LoadedModel | None = None,
) -> ExportResult:
    """Search, evaluate the corners on held-out images, and write the run folder.

    See `run_study` for `parts`, `model` and how a killed run goes on.

    Raises:
        RegCacheError: with the exit code of its kind; finished parts stay.
    """
    if options.recipe is None:
        options = replace(options, recipe=REGCACHE)
    with team_of(options, parts) as team:
        study = run_study(options, reporter, parts, model, team)
        folder, found = options.output_dir, study.found
        folder.mkdir(parents=True, exist_ok=True)
        details = details_of(found, options)
        details["ablation"] = _ablation(study, folder, reporter, team) if ablation else []
    results_csv = folder / "results.csv"
    write_trials(results_csv, found.result.trials, found.objective.name)
    if study.front is not None:
        write_front(folder, study.front)
    result = study.result(
        agreement={},
        differences=study.baseline.differences,
        results_csv=results_csv,
        details=details,
    )
    plots = draw(study, folder, result.to_json(), reporter)
    document = result.to_json() | {"plots": plots, "options": options.to_json()}
    document |= {"made_of": study.made_of}
    write_json(folder / DETAILS, document | {"run": account_of(study.sets)})
    return result


def _ablation(
    study: Study, folder: Path, reporter: Reporter, team: Team | None
) -> list[dict[str, Any]]:
    options, sets = study.options, study.sets
    rows = run_ablation(options, sets, study.held_out, study.judge, reporter, team=team)
    setup = {
        "model": study.model.name,
        "caution": study.model.caution or "",
        "metric": study.judge.name,
        "n": sets.judged,
        "search_images": len(sets.search),
        "calibration_images": len(sets.calibration_tokens),
    }
    write_ablation(folder / "ablation.csv", rows, setup)
    return [row.to_json() for row in rows]
