"""From options to a quantizer: bits, folds, and the linears that stay in floating point."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torch import Tensor

from regcache_export.fold_names import REPARAMETRIZATION

from ..encoders import (
    Encoder,
    RegCacheConfig,
)
from ..errors import ConfigError
from ..evaluation.corners import (
    calibrate_corner,
    simulate,
)
from ..run.options import (
    AUTO,
    ExportOptions,
    layer_names,
)
from . import (
    Bits,
    make_baseline,
)
from .baselines import Baseline
from .baselines.naive import Naive
from .baselines.repqvit import RepQViT
from .encoder_folds import VALUE_BALANCE
from .histogram import Observer
from .keep_float import choose_float_layers

if TYPE_CHECKING:
    from ..evaluation.image_sets import ImageSets
    from ..search import Sensitivity

logger = logging.getLogger(__name__)

VNNI_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "avx512vnni", "amx_int8", "asimddp", "i8mm"})
"""Instructions that sum u8s8 products in 32 bits; without one, pairs are summed in 16."""


def chosen_baseline(options: ExportOptions) -> Baseline:
    """The quantizer that the user asked for.

    Raises:
        ConfigError: a fold to leave out that this baseline has not.
    """
    bits = Bits(options.weight_bits, options.activation_bits)
    baseline = make_baseline(options.baseline, bits, "paper" if options.strict_paper else "deploy")
    if isinstance(baseline, Naive):
        baseline = Naive(bits, baseline.form, cast(Observer, options.observer))
    if REPARAMETRIZATION in options.left_out:
        if not isinstance(baseline, RepQViT):
            raise ConfigError(f"--no-fold {REPARAMETRIZATION} needs --baseline repqvit")
        baseline.reparametrize = False
    folds = [name for name in baseline.folds if name not in options.left_out]
    baseline.folds = (*folds, VALUE_BALANCE) if options.balance else tuple(folds)
    if options.keep_float != AUTO:
        baseline.keep_float = layer_names(options.keep_float)
    return baseline


def choose_float(
    options: ExportOptions,
    baseline: Baseline,
    encoder: Encoder,
    sets: ImageSets,
    config: RegCacheConfig,
    register: Mapping[int, Tensor],
    sensitivity: Sensitivity,
) -> tuple[str, ...]:
    """With `--keep-float auto`, leave as few linears in float as keep the budget.

    Scored on the search images, with the chosen RegCache in place.

    Returns:
        A warning where the budget is not met even with all linears in float.
    """
    if options.keep_float != AUTO:
        return ()

    def score(names: frozenset[str]) -> float:
        baseline.keep_float = names
        calibration = calibrate_corner(
            baseline, encoder, sets.calibration_tokens, config, dict(register)
        )
        batches = sets.search.batches(options.batch_size)
        return sets.objective.score(simulate(calibration, batches, lambda n: None)).value

    layers = sensitivity.layers
    ranking = sorted(layers, key=lambda name: layers[name].key)
    reference = sets.objective.score(sets.reference).value
    choice = choose_float_layers(ranking, score, reference, options.budget)
    baseline.keep_float = choice.names
    logger.info("in float: %s", ", ".join(sorted(choice.names)) or "no linear")
    if choice.within:
        return ()
    return (
        f"--budget {options.budget:g} is not met even with all linears in float "
        f"({choice.value:.4f} against {reference:.4f})",
    )


def has_exact_products(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool | None:
    """Whether u8s8 products are exact on this CPU, or None where that cannot be found out."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return None
    flags = {
        word
        for line in lines
        if line.lower().startswith(("flags", "features"))
        for word in line.split(":", 1)[-1].split()
    }
    return bool(flags & VNNI_FLAGS) if flags else None


def warn_about_saturation(options: ExportOptions, cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Warn where 8-bit weights may saturate on this CPU; returns whether it did."""
    if options.weight_bits < 8 or has_exact_products(cpuinfo) is not False:
        return False
    logger.warning(
        "this CPU has no VNNI instructions: sums of two u8s8 products may saturate at 16 bits, "
        "and the graph then differs from the simulation; add --reduce-range for 7-bit weights"
    )
    return True
