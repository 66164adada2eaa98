"""The main job: encoder and images in, searched and verified INT8 bundle out.

    load -> sensitivity -> register -> search -> corners -> plan -> bundle -> deployed check

Each step is one call into the package that owns it; this file only hands results along.
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from torch import Tensor

from .data.sets import skipped_lines
from .deploy import draft_bundle, plan_of, run_bundle, verify_and_seal
from .encoders import RegCacheConfig
from .encoders.load import LoadedModel, load_model
from .evaluation import PairedComparison, Score, compare_paired
from .evaluation.corners import evaluate_corners
from .image_sets import ImageSets, load_image_sets
from .options import ExportOptions
from .progress import Reporter
from .quantization import Bits, make_baseline
from .result import ExportResult, write_json, write_trials
from .search import SearchProblem, Sensitivity, measure_sensitivity, search
from .search.grid import SearchSpace
from .search.register import capture_register, find_candidates

LOOK_BACK = 3
"""Target blocks are searched from this many blocks before the sensitive one (paper, section 4)."""


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
    model = load_model(options.model, options.pretrained)
    check_choice(options, model)
    sets = load_image_sets(options, model, reporter)
    sensitivity = _sensitivity(options, model, sets, reporter)
    space = search_space(options, model, sensitivity)
    problem = _problem(options, model, sets, space, reporter)
    with reporter.stage("search of prefix and delete counts") as advance:
        found = search(problem, space, advance)
    baseline = make_baseline(options.baseline, _bits(options))
    register = problem.registers.get(found.best.prefix_block, {})
    del problem
    corners, calibration = evaluate_corners(
        baseline, model.encoder, sets, found.best, register, options.batch_size, reporter
    )
    draft = draft_bundle(options, plan_of(options, model, sets, calibration, found))
    deployed = run_bundle(options, draft, sets, reporter)
    judge = sets.judge(corners["fp32"])
    scores = {name: judge.score(features) for name, features in corners.items()}
    scores["deployed"] = judge.score(deployed)
    accuracy = {n: s.value for n, s in scores.items() if not n.startswith("paper/")}
    agreement = verify_and_seal(
        options, draft, corners["regcache"], deployed, sets, calibration, {"accuracy": accuracy}
    )
    results_csv = options.output_dir / "results.csv"
    write_trials(results_csv, found.trials, sets.objective.name, len(sets.search))
    result = ExportResult(
        model=model.name,
        baseline=options.baseline,
        bits=options.bits,
        sensitive_layer=sensitivity.layer,
        prefix_block_candidates=space.blocks,
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
        differences=baseline.differences,
        warnings=(*skipped_lines(sets.search, sets.evaluation), *calibration.warnings),
        caution=model.caution,
        results_csv=results_csv,
        bundle=options.bundle_path,
        seconds=time.monotonic() - began,
    )
    write_json(options.output_dir / "result.json", result.to_json())
    return result


def check_choice(options: ExportOptions, model: LoadedModel) -> None:
    """Refuse numbers that this encoder cannot have, before any image is read.

    Raises:
        ConfigError: a block or a count is out of range.
    """
    RegCacheConfig(
        prefix_block=options.prefix_block or 0,
        prefix_count=options.prefix_count or 0,
        delete_block=0,
        delete_count=options.delete_count or 0,
    ).check(model.encoder.spec)


def search_space(
    options: ExportOptions, model: LoadedModel, sensitivity: Sensitivity
) -> SearchSpace:
    """The paper's space around the sensitive block, less what the user fixed."""
    k, patches = sensitivity.block, model.encoder.spec.num_patches
    space = SearchSpace(tuple(range(max(0, k - LOOK_BACK), k + 1)), k)
    space = replace(space, delete=tuple(c for c in space.delete if c < patches))
    if options.prefix_block is not None:
        space = replace(space, blocks=(options.prefix_block,))
    if options.prefix_count is not None:
        space = replace(space, prefix=(options.prefix_count,))
    if options.delete_count is not None:
        space = replace(space, delete=(options.delete_count,))
    return space


def _bits(options: ExportOptions) -> Bits:
    return Bits(options.weight_bits, options.activation_bits)


def _sensitivity(
    options: ExportOptions, model: LoadedModel, sets: ImageSets, reporter: Reporter
) -> Sensitivity:
    layers = 4 * model.encoder.spec.depth
    with reporter.stage("sensitivity of each linear layer", layers) as advance:
        return measure_sensitivity(
            model.encoder,
            sets.calibration_tokens,
            sets.search_tokens,
            sets.objective,
            options.batch_size,
            advance,
        )


def _problem(
    options: ExportOptions,
    model: LoadedModel,
    sets: ImageSets,
    space: SearchSpace,
    reporter: Reporter,
) -> SearchProblem:
    blocks, size = list(space.blocks), options.batch_size
    with reporter.stage("register candidates", len(blocks)) as advance:
        images = torch.cat(list(sets.search.batches(size)))
        candidates = find_candidates(model.encoder, images.split(size), blocks)
        registers: dict[int, dict[int, Tensor]] = {}
        for block in blocks:
            registers[block] = capture_register(
                model.encoder, images, candidates[block], block, size
            )
            advance(1)
    return SearchProblem(
        encoder=model.encoder,
        baseline=make_baseline(options.baseline, _bits(options)).fast(),
        calibration_tokens=sets.calibration_tokens,
        search_tokens=sets.search_tokens,
        objective=sets.objective,
        registers=registers,
        batch_size=size,
    )


def _paired(scores: dict[str, Score], seed: int) -> dict[str, PairedComparison]:
    reference = scores["fp32"].per_image
    return {
        name: compare_paired(reference, score.per_image, seed)
        for name, score in scores.items()
        if name != "fp32"
    }
