"""`regcache search`: from options to a run folder with the decision and everything behind it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from ..data.sets import skipped_lines
from ..encoders.load import LoadedModel, load_model
from ..evaluation.corners import corner_configs
from ..evaluation.image_sets import load_image_sets
from ..quantization import make_baseline
from ..quantization.choice import chosen_baseline
from ..report.document import DETAILS
from ..report.plots import write_plots
from ..report.result import (
    ExportResult,
    write_json,
    write_trials,
)
from ..search.ablation import (
    run_ablation,
    write_ablation,
)
from ..search.cost import Work
from ..search.find import (
    FoundChoice,
    find_choice,
)
from ..search.held_out import (
    HeldOut,
    compare_scores,
)
from ..search.pictures import picture_data
from ..search.settings import SearchSettings
from ..work.cache import PartCache
from ..work.progress import Reporter
from .export import check_choice
from .options import ExportOptions

PARTS = "parts"


@torch.no_grad()
def run_search(
    options: ExportOptions,
    settings: SearchSettings,
    reporter: Reporter,
    ablation: bool = False,
    parts: Path | None = None,
    model: LoadedModel | None = None,
) -> ExportResult:
    """Search, evaluate the corners on held-out images, and write the run folder.

    A killed run goes on where it stopped: finished parts are in the folder `parts` of the run
    folder, or in the one that is given, which several runs may share. A `model` that is given takes
    the place of the one that the options name.

    Raises:
        RegCacheError: with the exit code of its kind; finished parts stay.
    """
    began = time.monotonic()
    if options.threads:
        torch.set_num_threads(options.threads)
    model = model or load_model(
        options.model, options.pretrained, options.image_size, options.templates
    )
    check_choice(options, model)
    folder = options.output_dir
    parts = parts or folder / PARTS
    sets = load_image_sets(options, model, reporter, parts)
    encoder, baseline = model.encoder, chosen_baseline(options)
    found = find_choice(options, baseline, encoder, sets, settings, reporter)
    config = found.result.best
    identity = {"search": sets.cache.identity, "held_out": sets.evaluation.fingerprint()}
    cache = PartCache(parts, identity, Work())
    held_out = HeldOut(encoder, sets, cache, options.batch_size, reporter)
    features = {"fp32": held_out.float_features}
    for name, corner in corner_configs(config).items():
        features[name] = held_out.features(name, baseline, corner, found.register)
    warnings = (*skipped_lines(sets.search, sets.evaluation), *held_out.warnings["regcache"])
    if baseline.differences:
        paper = make_baseline(baseline.name, baseline.bits, "paper")
        for name in ("baseline", "regcache"):
            corner = corner_configs(config)[name]
            features[f"paper/{name}"] = held_out.features(
                f"{name}, published form", paper, corner, found.register
            )
    judge = held_out.judge()
    scores = {name: judge.score(value) for name, value in features.items()}
    paired = {
        name: compare_scores(judge.name, scores["fp32"], score, options.seed)
        for name, score in scores.items()
        if name != "fp32"
    }
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    if ablation:
        rows = run_ablation(options, encoder, sets, settings, held_out, reporter)
        setup = {
            "model": model.name,
            "caution": model.caution or "",
            "metric": judge.name,
            "n": len(sets.evaluation),
            "search_images": len(sets.search),
            "calibration_images": len(sets.calibration_tokens),
        }
        write_ablation(folder / "ablation.csv", rows, setup)
    details = _details(found, settings, options)
    details["ablation"] = [row.to_json() for row in rows]
    results_csv = folder / "results.csv"
    write_trials(results_csv, found.result.trials, found.objective.name)
    result = ExportResult(
        model=model.name,
        baseline=options.baseline,
        bits=options.bits,
        sensitive_layer=found.sensitivity.layer,
        prefix_block_candidates=found.space.blocks,
        config=config,
        depth=encoder.spec.depth,
        search_accuracy=found.result.score.value,
        search_metric=found.objective.name,
        metric=judge.name,
        n_search=len(sets.search),
        n_eval=len(sets.evaluation),
        accuracy={n: s.value for n, s in scores.items() if not n.startswith("paper/")},
        paired=paired,
        paper_form={
            n.removeprefix("paper/"): s.value for n, s in scores.items() if n.startswith("paper/")
        },
        agreement={},
        differences=baseline.differences,
        warnings=warnings,
        caution=model.caution,
        results_csv=results_csv,
        seconds=time.monotonic() - began,
        search_cost=found.cost.to_json(),
        details=details,
        trials=found.result.trials,
    )
    with reporter.stage("pictures"):
        plots = write_plots(folder / "plots", result.to_json(), picture_data(encoder, sets, found))
    document = result.to_json() | {"plots": plots, "options": options.to_json()}
    write_json(folder / DETAILS, document)
    return result


def _details(
    found: FoundChoice, settings: SearchSettings, options: ExportOptions
) -> dict[str, Any]:
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
            "float": sensitivity.full.value,
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
