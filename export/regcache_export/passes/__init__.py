"""Exact folds: identities in real numbers that make the graph smaller or its ranges narrower.

| fold | runs | needs |
|---|---|---|
| `key-bias`, `value-bias`, `layer-scale` | before calibration, every baseline's deployed form | |
| `value-balance` | before calibration, on request | ranges of a float pass |
| `smoothing` (SmoothQuant) | inside a calibration, on request | factors that it searches |
| `reparametrization` (RepQ-ViT) | inside the calibration of `repqvit` | ranges per channel |
| `attention-scale`, `cls-only` | at export | |
| `centre-shift` | at export, for targets without zero points | quantizers |
| `bake-preprocess` | at export, on request | mean and std |

The numbers of the reparametrization are its baseline's (`regcache_deploy.quantization.folds`):
they choose quantizers. Each fold changes the cached register with the weights.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ConfigError
from ..fold_names import CALIBRATION_FOLDS, EXPORT_FOLDS, SWITCHABLE, check_switchable
from ..targets import GraphOptions, find_target
from .attention_scale import AttentionScale
from .base import FoldState, Pass, PassResult
from .centre_shift import CentreShift
from .cls_only import ClsOnlyLastBlock
from .key_bias import KeyBias
from .layer_scale import LayerScale
from .pixels import BakePreprocess
from .reparametrization import Reparametrization
from .smoothing import Smoothing
from .value_balance import ValueBalance
from .value_bias import ValueBias

_SIMPLE: dict[str, type[Pass]] = {
    fold.name: fold
    for fold in (LayerScale, KeyBias, ValueBias, AttentionScale, ClsOnlyLastBlock, CentreShift)
}


def make_folds(names: Sequence[str]) -> list[Pass]:
    """The folds by name, in the order given. Raises ConfigError for an unknown one."""
    for name in names:
        if name not in _SIMPLE:
            raise ConfigError(f"unknown fold '{name}'; known: {', '.join(_SIMPLE)}")
    return [_SIMPLE[name]() for name in names]


def export_folds(options: GraphOptions) -> list[Pass]:
    """The folds that turn a plan into the state a graph is written from, in order."""
    check_switchable(options.without)
    target = find_target(options.target)
    left_out = {*options.without, *target.skips}
    names = [name for name in EXPORT_FOLDS if name not in left_out]
    names += [name for name in target.folds if name not in names]
    folds = make_folds(names)
    if options.pixels is not None:
        folds.append(BakePreprocess(options.pixels))
    return folds


def run_folds(state: FoldState, folds: Sequence[Pass]) -> FoldState:
    """Apply folds one after another."""
    for fold in folds:
        state = fold(state).state
    return state


__all__ = [
    "CALIBRATION_FOLDS",
    "EXPORT_FOLDS",
    "SWITCHABLE",
    "BakePreprocess",
    "FoldState",
    "Pass",
    "PassResult",
    "Reparametrization",
    "Smoothing",
    "ValueBalance",
    "check_switchable",
    "export_folds",
    "make_folds",
    "run_folds",
]
