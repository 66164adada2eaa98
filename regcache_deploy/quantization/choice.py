"""From settings to a quantizer: bits, folds, and the linears that stay in floating point."""

from __future__ import annotations

from typing import cast

from regcache_export.fold_names import REPARAMETRIZATION

from ..errors import ConfigError
from .baselines import Baseline, make_baseline
from .baselines.naive import Naive
from .baselines.repqvit import RepQViT
from .encoder_folds import VALUE_BALANCE
from .histogram import Observer
from .quantizers import Bits
from .settings import AUTO, QuantizerSettings, layer_names


def chosen_baseline(settings: QuantizerSettings, seed: int) -> Baseline:
    """The quantizer that the user asked for; `seed` as `make_baseline` takes it.

    Raises:
        ConfigError: a fold to leave out that this baseline has not.
    """
    bits = Bits(settings.weight_bits, settings.activation_bits)
    baseline = make_baseline(
        settings.baseline, bits, "paper" if settings.strict_paper else "deploy", seed
    )
    if isinstance(baseline, Naive):
        baseline = Naive(bits, baseline.form, cast(Observer, settings.observer))
    if REPARAMETRIZATION in settings.left_out:
        if not isinstance(baseline, RepQViT):
            raise ConfigError(f"--no-fold {REPARAMETRIZATION} needs --baseline repqvit")
        baseline.reparametrize = False
    folds = [name for name in baseline.folds if name not in settings.left_out]
    baseline.folds = (*folds, VALUE_BALANCE) if settings.balance else tuple(folds)
    if settings.keep_float != AUTO:
        baseline.keep_float = layer_names(settings.keep_float)
    return baseline
