"""From the chosen calibration to a verified bundle on disk."""

from __future__ import annotations

import itertools
import platform
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regcache_engines.engine import load_engine
from regcache_export.bundle import seal_bundle, write_bundle
from regcache_export.fold_names import REPARAMETRIZATION
from regcache_export.plan import Plan
from regcache_export.targets import find_target

from . import __version__
from .baseline_choice import chosen_baseline
from .certify import certify_bundle
from .encoders.load import LoadedModel
from .errors import VerificationError
from .evaluation.deployed import Agreement, compare_features, float64_control, run_engine
from .image_sets import ImageSets
from .monitor import monitor_entry
from .options import ExportOptions
from .planning import make_plan
from .progress import Reporter
from .quantization import Bits, Calibration
from .quantization.baselines.table import Deployment, tensor_table
from .quantization.encoder_folds import changing_folds
from .quantization.tensorrt_table import tensorrt_forms
from .search import SearchResult

CONTROL_BATCH, CONTROL_BATCHES = 32, 8
"""Evaluation images that the float64 control runs on, where it is needed."""


def plan_of(
    options: ExportOptions,
    model: LoadedModel,
    sets: ImageSets,
    calibration: Calibration,
    found: SearchResult,
) -> Plan:
    """The plan of a finished search, with where everything came from."""
    provenance: dict[str, Any] = {
        "model": model.name,
        "pretrained": model.pretrained,
        "caution": model.caution,
        "baseline": options.baseline,
        "bits": options.bits,
        "weights_sha256": model.weights_sha256(),
        "search_data": sets.search.source,
        "search_data_sha256": sets.search.fingerprint(),
        "search_objective": sets.objective.name,
        "search_value": found.score.value,
        "seed": options.seed,
        "quantizers": tensor_table(
            options.baseline,
            Bits(*options.requested_bits),
            model.encoder.spec,
            _deployment(options, model, calibration),
        ),
        "options": options.to_json(),
        "versions": {
            "regcache_deploy": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    return make_plan(
        calibration,
        regcache_config=None if found.best.is_empty else found.best,
        preprocess=model.preprocess,
        text_features=sets.head,
        labels=tuple(sets.evaluation.class_names) if sets.head is not None else (),
        logit_scale=model.logit_scale,
        provenance=provenance,
        strict=options.strict_paper,
    )


def _deployment(options: ExportOptions, model: LoadedModel, calibration: Calibration) -> Deployment:
    """What stands between the paper and this graph."""
    forms = None
    if find_target(options.target).form == "tensorrt":
        forms = tensorrt_forms(options.baseline, calibration)
    linears = set(model.encoder.spec.linears())
    return Deployment(
        bits=Bits(options.weight_bits, options.activation_bits),
        keep_float=linears - calibration.quantization.linears.keys(),
        strict=options.strict_paper,
        folds=changing_folds(model.encoder, chosen_baseline(options).folds),
        reparametrized=REPARAMETRIZATION not in options.left_out,
        observer=options.observer,
        deployed_as=forms,
        treated=calibration.quantization.treatment_notes(),
    )


def run_bundle(options: ExportOptions, bundle: Path, sets: ImageSets, reporter: Reporter) -> Tensor:
    """Embeddings `[n, E]` of the evaluation images from the bundle in ONNX Runtime."""
    batches = -(-len(sets.evaluation) // options.batch_size)
    with (
        reporter.stage("evaluation of the deployed graph", batches) as advance,
        load_engine(bundle, threads=options.threads) as engine,
    ):
        size = options.batch or options.batch_size
        if engine.pixels is None:
            return run_engine(engine, sets.evaluation.batches(size), advance)
        pixels = sets.evaluation.pixels
        if engine.pixels == "nchw":
            pixels = pixels.permute(0, 3, 1, 2).contiguous()
        return run_engine(engine, pixels.split(size), advance)


def draft_bundle(options: ExportOptions, plan: Plan) -> Path:
    """Write plan and bundle; the bundle keeps the suffix `.unverified` until it is sealed."""
    plan.save(options.output_dir)
    draft = options.bundle_path.with_suffix(".unverified")
    return write_bundle(plan, draft, options=options.graph)


def verify_and_seal(
    options: ExportOptions,
    draft: Path,
    simulated: Tensor,
    deployed: Tensor,
    sets: ImageSets,
    calibration: Calibration,
    manifest: dict[str, Any],
    plan: Plan,
) -> Agreement:
    """Give the bundle its name if what runs is what was simulated.

    Raises:
        VerificationError: it is not; the bundle is kept with the suffix `.rejected`.
    """
    agreement = compare_features(deployed, simulated, sets.head)
    if not agreement.within:
        batches = itertools.islice(sets.evaluation.batches(CONTROL_BATCH), CONTROL_BATCHES)
        control = float64_control(calibration, batches, sets.head)
        agreement = replace(agreement, control=control.mean_cosine, control_top1=control.top1)
    try:
        agreement.check()
        pixels = sets.search.pixels[: options.certificate_images]
        certify_bundle(draft, plan, options.graph, calibration, pixels)
    except VerificationError as error:
        rejected = options.bundle_path.with_suffix(".rejected")
        shutil.rmtree(rejected, ignore_errors=True)
        draft.rename(rejected)
        raise VerificationError(f"{error}; the bundle is kept as {rejected}") from error
    calibrated = sets.search.pixels[: options.calibration_images].numpy()
    found = {"agreement": agreement.to_json()}
    found |= monitor_entry(draft, calibrated, options.batch_size, options.threads)
    seal_bundle(draft, options.bundle_path, manifest | found)
    return agreement
