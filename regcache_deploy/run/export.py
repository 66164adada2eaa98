"""The main job: encoder and images in, searched and verified INT8 bundle out.

study -> plan -> bundle -> deployed check -> certificate
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from regcache_engines.bundle import MODEL
from regcache_engines.files import gone_at_the_end, held, sha256_file
from regcache_export.bundle import add_files
from regcache_export.plan import Plan

from ..bench.first_look import first_look
from ..bundling.bundle import BundleWriter
from ..bundling.plan import plan_of
from ..bundling.tensorrt import float16_cost, float32_twin, is_tensorrt, with_attention
from ..bundling.text import text_part
from ..errors import ConfigError
from ..quantization.baselines.table import fold_differences
from ..quantization.encoder_folds import changing_folds
from ..quantization.saturation import warn_about_saturation
from ..quantization.simulate import Calibration
from ..quantization.tensorrt_table import tensorrt_differences
from ..report.result import ExportResult, write_trials
from ..work.json_file import write_json
from ..work.paths import RESULT, require_own_plan
from ..work.progress import Reporter
from .account import account_of
from .details import details_of, draw
from .finished import changed_since
from .merging import write_front
from .options import ExportOptions
from .study import Study, run_study, team_of


@torch.no_grad()
def run_export(
    options: ExportOptions,
    reporter: Reporter,
    parts: Path | None = None,
    searched: Path | None = None,
) -> ExportResult:
    """Search, bake, export, verify; see `run_study` for how a killed run goes on.

    Args:
        parts: folder of finished parts, for example that of a search; None is the run's own.
        searched: folder of the search that the options are from.

    Raises:
        RegCacheError: with the exit code of its kind; nothing half-written is left behind.
        ConfigError: the result folder holds another bundle, whose plan would be replaced.
        VerificationError: the deployed graph is not the simulated one; the bundle keeps the
            suffix `.rejected`.
    """
    if options.merge_compat:
        raise ConfigError(
            "--merge-compat is only simulated, and an export writes what runs; take it with "
            "`regcache search`"
        )
    require_own_plan(options.output_dir, options.bundle_path.name)
    warn_about_saturation(options.weight_bits)
    with team_of(options, parts) as team:
        study = run_study(options, reporter, parts, team=team)
    if searched is not None:
        study.changed = changed_since(searched, study.made_of)
    sets = study.sets
    with reporter.stage("calibration of the chosen way"):
        calibration = study.calibrate()
    writer = BundleWriter(
        options.bundle_path,
        options.graph,
        options.certificate_images,
        options.batch_size,
        options.threads,
    )
    if is_tensorrt(options.target):
        calibration, study.features["recipe"] = with_attention(
            calibration, sets, options.batch_size, reporter
        )
        study.held_out.warnings["recipe"] = calibration.warnings
    calibration = calibration.to("cpu")  # plan and certificate are numpy
    with reporter.stage("folding weights"):
        plan = plan_of(
            study.model,
            sets,
            calibration,
            study.found.result,
            study.config,
            study.baseline,
            options,
            options.target,
            {
                "seed": options.seed,
                "options": options.to_json(),
                "recipe": study.recipe,
                "sensitive_layer": study.found.sensitivity.layer,
            },
        )
    text = None
    if options.text and study.model.text is not None:
        text = text_part(study.model.text, plan.labels, plan.encoder.output_dim, reporter)
    with held(options.output_dir):  # by a second export, whose draft has the same name
        with reporter.stage("writing the bundle"):
            draft = writer.draft(plan)
        with gone_at_the_end(draft):
            deployed = writer.run(draft, sets, reporter)
            verified, extra = deployed, dict[str, Any]()
            simulated = study.features["recipe"]
            if is_tensorrt(options.target):
                verified = float32_twin(writer, plan, sets, reporter)
                extra = float16_cost(deployed, simulated, sets)
            study.features["deployed"] = deployed
            graph = sha256_file(draft / MODEL)
            manifest: dict[str, Any] = {"accuracy": study.accuracy()} | extra
            if text is not None:
                add_files(draft, text.files)
                manifest["text"] = text.manifest
            with reporter.stage("certificate: graph against simulation, code by code"):
                agreement = writer.verify_and_seal(
                    draft, plan, calibration, sets, simulated, verified, manifest
                )
    results_csv = options.output_dir / "results.csv"
    write_trials(results_csv, study.found.result.trials, study.found.objective.name)
    if study.front is not None:
        write_front(options.output_dir, study.front)
    speed = None
    if not is_tensorrt(options.target):  # the float file of the same encoder, on the CPU
        pixels = sets.search.pixels[:1].numpy()
        speed = first_look(
            plan, options.bundle_path, options.graph, pixels, options.threads, reporter
        )
    result = study.result(
        speed=speed,
        file_mib=file_sizes(plan, options.bundle_path),
        agreement=agreement.to_json(),
        differences=_differences(study, calibration),
        results_csv=results_csv,
        bundle=options.bundle_path,
    )
    document = result.to_json() | details_of(study.found, options)
    plots = draw(study, options.output_dir, document, reporter)
    more = {"plots": plots, "options": options.to_json(), "run": account_of(sets)}
    write_json(options.output_dir / RESULT, document | more | {"model_sha256": graph})
    return result


def file_sizes(plan: Plan, bundle: Path) -> dict[str, float]:
    """MiB of the bundle's ONNX file, and of the encoder's weights in FP32."""
    weights = sum(weight.nbytes for weight in plan.weights.values())
    return {"fp32": weights / 2**20, "int8": (bundle / MODEL).stat().st_size / 2**20}


def _differences(study: Study, calibration: Calibration) -> tuple[str, ...]:
    """Where the graph's quantizers are not the published ones, one line each."""
    options, baseline = study.options, study.baseline
    if options.strict_paper:
        return ()
    folded = fold_differences(changing_folds(study.model.encoder, baseline.folds))
    if is_tensorrt(options.target):
        return (*tensorrt_differences(baseline.name, calibration), *folded)
    return (*baseline.differences, *folded)
