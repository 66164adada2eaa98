"""How a search went, as JSON and as pictures: what the page shows beside the decision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..report.plots import write_plots
from ..search.find import FoundChoice
from ..search.pictures import picture_data
from ..search.settings import SearchSettings
from ..work.progress import Reporter
from .study import Study


def draw(
    study: Study, folder: Path, document: dict[str, Any], reporter: Reporter
) -> dict[str, str]:
    """Write the pictures of a study into `folder / "plots"`; picture -> file below `folder`."""
    with reporter.stage("pictures of tokens and search"):
        data = picture_data(study.model.encoder, study.sets, study.found)
        return write_plots(folder / "plots", document, data)


def details_of(found: FoundChoice, settings: SearchSettings) -> dict[str, Any]:
    """The curve of sensitivity, the gain, every trial."""
    sensitivity, result = found.sensitivity, found.result
    nothing = result.nothing
    return {
        "readings": settings.identity(),
        "gain": {
            "found": not result.best.is_empty,
            "p_value": result.p_value,
            "baseline_alone": nothing.value if nothing else None,
            "candidate": result.candidate.to_json() if result.candidate else None,
            "undecided": result.undecided,
        },
        "sensitivity": {
            "images": sensitivity.images,
            "metric": found.objective.name,
            "float": sensitivity.full.value if sensitivity.full else None,
            "layers": {
                name: {"drop": sensitivity.drop(name), "cosine": score.fidelity}
                for name, score in sensitivity.layers.items()
            },
            "proxy": {
                "block": sensitivity.proxy.block,
                "fc2_input": list(sensitivity.proxy.fc2_input),
                "block_input": list(sensitivity.proxy.block_input),
            },
        },
        "ranking_recall": {str(t): share for t, share in found.recall.items()},
        "trials": [
            {
                "stage": trial.stage,
                **trial.config.to_json(),
                "images": trial.images,
                "value": trial.score.value,
                "fidelity": trial.score.fidelity,
                "block_forwards": trial.work,
            }
            for trial in result.trials
        ],
    }
