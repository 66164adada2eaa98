"""The plan of a finished search, with where everything came from."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import torch

from regcache_export.fold_names import REPARAMETRIZATION
from regcache_export.plan import Plan
from regcache_export.targets import find_target

from .. import __version__
from ..encoders.load import LoadedModel
from ..encoders.regcache import RegCacheConfig
from ..evaluation.image_sets import ImageSets
from ..quantization.baselines import Baseline
from ..quantization.baselines.table import Deployment, tensor_table
from ..quantization.encoder_folds import changing_folds
from ..quantization.plan import make_plan
from ..quantization.quantizers import Bits
from ..quantization.settings import QuantizerSettings
from ..quantization.simulate import Calibration
from ..quantization.tensorrt_table import tensorrt_forms
from ..search.result import SearchResult


def plan_of(
    model: LoadedModel,
    sets: ImageSets,
    calibration: Calibration,
    found: SearchResult,
    config: RegCacheConfig,
    baseline: Baseline,
    settings: QuantizerSettings,
    target: str,
    more: Mapping[str, Any],
) -> Plan:
    """The plan of a finished search.

    Args:
        model, sets, found: of the search.
        calibration: with `config`, the numbers of the chosen way.
        baseline: that made it.
        settings: that the baseline was chosen by.
        target: of the graph.
        more: provenance that only the caller knows: seed, resolved options.
    """
    forms = None
    if find_target(target).form == "tensorrt":
        forms = tensorrt_forms(baseline.name, calibration)
    spec = model.encoder.spec
    range_rule = getattr(baseline, "range_rule", "percentile")
    deployment = Deployment(
        bits=Bits(settings.weight_bits, settings.activation_bits),
        keep_float=set(spec.linears()) - calibration.quantization.linears.keys(),
        strict=settings.strict_paper,
        folds=changing_folds(model.encoder, baseline.folds),
        reparametrized=REPARAMETRIZATION not in settings.left_out,
        observer=settings.observer,
        deployed_as=forms,
        treated=calibration.quantization.treatment_notes(),
        range_rule=range_rule,
    )
    bits = Bits(*settings.requested_bits)
    provenance = {
        "model": model.name,
        "pretrained": model.pretrained,
        "caution": model.caution,
        "baseline": baseline.name,
        "bits": settings.bits,
        "weights_sha256": model.weights_sha256(),
        "search_data": sets.search.source,
        "search_data_sha256": sets.search.fingerprint(),
        "search_objective": sets.objective.name,
        "search_value": found.score.value,
        "range_rule": range_rule,
        "treatment": baseline.treatment.to_json(),
        "quantizers": tensor_table(baseline.name, bits, spec, deployment),
        **more,
        "versions": {
            "regcache_deploy": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    return make_plan(
        calibration,
        regcache_config=None if config.is_empty else config,
        preprocess=model.preprocess,
        text_features=sets.head,
        labels=tuple(sets.evaluation.class_names) if sets.head is not None else (),
        logit_scale=model.logit_scale,
        provenance=provenance,
        strict=settings.strict_paper,
    )
