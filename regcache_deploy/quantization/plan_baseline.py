"""The quantizer of a finished plan, ready to calibrate the plan's own folded weights again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from regcache_export.fold_names import REPARAMETRIZATION
from regcache_export.plan import Plan

from ..errors import ConfigError
from ..work.settings import split_names
from .baselines import Baseline, Form, make_baseline
from .baselines.naive import Naive
from .baselines.repqvit import RepQViT
from .histogram import Observer
from .quantizers import Bits
from .settings import BASELINE_NAMES
from .simulate import Calibration


def baseline_of(plan: Plan, before: Calibration, seed: int | None = None) -> Baseline:
    """The plan's baseline with its bits, its form, its float linears and its treated inputs.

    Its folds are switched off: the plan's weights hold them.

    Args:
        before: of the plan.
        seed: as `make_baseline` takes it; None takes the plan's own.

    Raises:
        ConfigError: a plan whose ranges no baseline sets by itself.
    """
    name = plan.provenance.get("baseline")
    quantized = before.quantization.linears
    if name not in BASELINE_NAMES or plan.matmuls or not quantized:
        what = "INT8 attention" if plan.matmuls else f"baseline '{name}'"
        what = what if quantized else "nothing that is quantized"
        raise ConfigError(
            f"this plan has {what}, so its quantizer cannot be calibrated again; export with "
            f"--baseline {'|'.join(BASELINE_NAMES)} and a CPU target"
        )
    first = next(iter(quantized.values()))
    bits = Bits(*(q.bits for q in (first.weight, first.input)))  # type: ignore[attr-defined]
    if seed is None:
        own = plan.provenance.get("seed")
        seed = own if isinstance(own, int) else 0
    form: Form = "paper" if plan.published else "deploy"
    baseline = make_baseline(name, bits, form, seed)
    if isinstance(baseline, Naive):
        baseline = Naive(bits, baseline.form, _observer(plan.provenance))
    if isinstance(baseline, RepQViT):
        left_out = split_names(_options(plan.provenance).get("no_fold") or "")
        baseline.reparametrize = REPARAMETRIZATION not in left_out
        baseline.range_rule = plan.provenance.get("range_rule", baseline.range_rule)
    baseline.folds = ()
    baseline.keep_float = frozenset(set(plan.encoder.linears()) - quantized.keys())
    baseline.kept_inputs = {name: layer.treated for name, layer in quantized.items()}
    return baseline


def _options(provenance: Mapping[str, Any]) -> dict[str, Any]:
    stored = provenance.get("options")
    return stored if isinstance(stored, dict) else {}


def _observer(provenance: Mapping[str, Any]) -> Observer:
    """The observer that set the ranges last."""
    again = provenance.get("recalibrated")
    source = again if isinstance(again, dict) else _options(provenance)
    return cast(Observer, source.get("observer") or "minmax")
