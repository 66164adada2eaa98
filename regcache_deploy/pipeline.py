"""The main job: encoder and images in, searched and verified INT8 bundle out.

    load -> sensitivity -> register -> search -> corners -> plan -> bundle -> deployed check

Each step is one call into the package that owns it; this file only hands results along.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from .baseline_choice import choose_float, chosen_baseline, warn_about_saturation
from .data.sets import skipped_lines
from .deploy import draft_bundle, plan_of, run_bundle, verify_and_seal
from .encoders import Encoder, RegCacheConfig
from .encoders.load import LoadedModel, load_model
from .errors import ConfigError
from .evaluation import PairedComparison, Score, compare_paired
from .evaluation.corners import evaluate_corners
from .image_sets import load_image_sets
from .options import AUTO, ExportOptions, layer_names
from .progress import Reporter
from .quantization import Calibration
from .quantization.baselines import Baseline
from .quantization.baselines.table import fold_differences
from .quantization.encoder_folds import changing_folds
from .quantization.tensorrt_table import tensorrt_differences
from .result import ExportResult, write_json, write_trials
from .search import SearchSettings
from .search.job import find_choice
from .tensorrt_form import float16_cost, float32_twin, is_tensorrt, with_attention


@torch.no_grad()
def run_export(options: ExportOptions, reporter: Reporter) -> ExportResult:
    """Search, bake, export, verify.

    Raises:
        RegCacheError: with the exit code of its kind; nothing half-written is left behind.
        VerificationError: the deployed graph is not the simulated one; the bundle keeps the
            suffix `.rejected`.
    """
    began = time.monotonic()
    if options.threads:
        torch.set_num_threads(options.threads)
    warn_about_saturation(options)
    model = load_model(options.model, options.pretrained, options.image_size, options.templates)
    check_choice(options, model)
    sets = load_image_sets(options, model, reporter)
    baseline = chosen_baseline(options)
    search = find_choice(options, baseline, model.encoder, sets, SearchSettings(), reporter)
    found = search.result
    over_budget = choose_float(
        options, baseline, model.encoder, sets, found.best, search.register, search.sensitivity
    )
    corners, calibration = evaluate_corners(
        baseline, model.encoder, sets, found.best, search.register, options.batch_size, reporter
    )
    if is_tensorrt(options):
        calibration, corners["regcache"] = with_attention(options, calibration, sets, reporter)
    plan = plan_of(options, model, sets, calibration, found)
    draft = draft_bundle(options, plan)
    deployed = run_bundle(options, draft, sets, reporter)
    verified, extra = deployed, dict[str, Any]()
    if is_tensorrt(options):
        verified = float32_twin(options, plan, sets, reporter)
        extra = float16_cost(deployed, corners["regcache"], sets)
    judge = sets.judge(corners["fp32"])
    scores = {name: judge.score(features) for name, features in corners.items()}
    scores["deployed"] = judge.score(deployed)
    accuracy = {n: s.value for n, s in scores.items() if not n.startswith("paper/")}
    agreement = verify_and_seal(
        options,
        draft,
        corners["regcache"],
        verified,
        sets,
        calibration,
        {"accuracy": accuracy} | extra,
        plan,
    )
    results_csv = options.output_dir / "results.csv"
    write_trials(results_csv, found.trials, sets.objective.name)
    result = ExportResult(
        model=model.name,
        baseline=options.baseline,
        bits=options.bits,
        sensitive_layer=search.sensitivity.layer,
        prefix_block_candidates=search.space.blocks,
        config=found.best,
        depth=model.encoder.spec.depth,
        search_accuracy=found.score.value,
        search_metric=sets.objective.name,
        metric=judge.name,
        n_search=len(sets.search),
        n_eval=len(sets.evaluation),
        accuracy=accuracy,
        paired=_paired(scores, options.seed) if judge.name == "top1" else {},
        paper_form={
            n.removeprefix("paper/"): s.value for n, s in scores.items() if n.startswith("paper/")
        },
        agreement=agreement.to_json(),
        differences=_differences(options, baseline, model.encoder, calibration),
        in_float=tuple(n for n in model.encoder.spec.linears() if n in baseline.keep_float),
        warnings=(
            *skipped_lines(sets.search, sets.evaluation),
            *calibration.warnings,
            *over_budget,
        ),
        caution=model.caution,
        results_csv=results_csv,
        bundle=options.bundle_path,
        seconds=time.monotonic() - began,
        search_cost=search.cost.to_json(),
        trials=found.trials,
    )
    write_json(options.output_dir / "result.json", result.to_json())
    return result


def check_choice(options: ExportOptions, model: LoadedModel) -> None:
    """Refuse numbers that this encoder cannot have, before any image is read.

    Raises:
        ConfigError: a block or a count is out of range, or a linear is not there.
    """
    RegCacheConfig(
        prefix_block=options.prefix_block or 0,
        prefix_count=options.prefix_count or 0,
        delete_block=0,
        delete_count=options.delete_count or 0,
        range_delete_count=max(options.delete_count or 0, options.range_delete_count or 0),
    ).check(model.encoder.spec)
    if options.keep_float == AUTO:
        return
    for name in sorted(layer_names(options.keep_float) - set(model.encoder.spec.linears())):
        last = model.encoder.spec.depth - 1
        raise ConfigError(f"--keep-float {name}: this encoder has blocks 0..{last}")


def _differences(
    options: ExportOptions, baseline: Baseline, encoder: Encoder, calibration: Calibration
) -> tuple[str, ...]:
    """Where the graph's quantizers are not the published ones, one line each."""
    if options.strict_paper:
        return ()
    folded = fold_differences(changing_folds(encoder, baseline.folds))
    if is_tensorrt(options):
        return (*tensorrt_differences(baseline.name, calibration), *folded)
    return (*baseline.differences, *folded)


def _paired(scores: dict[str, Score], seed: int) -> dict[str, PairedComparison]:
    reference = scores["fp32"].per_image
    return {
        name: compare_paired(reference, score.per_image, seed)
        for name, score in scores.items()
        if name != "fp32"
    }
