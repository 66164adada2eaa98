"""The ways to an INT8 file: quantizer alone, treated, RegCache, both.

No way is best for every encoder. Smoothing spreads a spike that RegCache removes, a few channels in
float carry it, and a healthy encoder needs none of them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

from regcache_export.spec import EncoderSpec

from ..encoders.regcache import RegCacheConfig
from ..quantization.baselines import Baseline
from ..quantization.baselines.repqvit import RepQViT
from ..quantization.treatment import MAX_FLOAT_CHANNELS, Treatment
from .settings import ALONE, REGCACHE

DEAR = ("treated", "regcache_treated", "smoothed", "channels", "fc2_float")
"""Ways that add operators, in the order in which they are tried: the first two choose, linear by
linear, from what the next two have."""

TITLES = {
    ALONE: "quantizer alone",
    "ranges": "ranges by output error",
    "smoothed": "smoothing",
    "channels": "outlier channels in float",
    "treated": "smoothing and outlier channels",
    "fc2_float": "the sensitive block's fc2 in float",
    REGCACHE: "RegCache",
    "regcache_ranges": "RegCache, ranges by output error",
    "regcache_treated": "RegCache with smoothing and outlier channels",
}


@dataclass(frozen=True)
class Way:
    """One quantizer with one choice of RegCache's numbers.

    Attributes:
        name: a key of `TITLES`.
    """

    name: str
    baseline: Baseline
    config: RegCacheConfig

    @property
    def title(self) -> str:
        return TITLES[self.name]


def ways_of(
    baseline: Baseline, config: RegCacheConfig, sensitive_layer: str, spec: EncoderSpec
) -> list[Way]:
    """Every way that this quantizer has, the plain one first.

    Args:
        baseline: as asked for.
        config: that the search found; empty where it found no gain, and then no way has it.
        sensitive_layer: its block's fc2 is the one that may stay in float.
        spec: of the encoder.
    """
    nothing = replace(config, prefix_count=0).deleting(0)
    fc2 = f"blocks.{int(sensitive_layer.split('.')[1])}.mlp.fc2"
    roles: tuple[str, ...] = ("out_proj", "fc2")
    if not isinstance(baseline, RepQViT):  # which has a range per channel there already
        roles = ("qkv", "fc1", *roles)
    treatments = {
        "smoothed": Treatment(roles),
        "channels": Treatment(float_channels=MAX_FLOAT_CHANNELS),
        "treated": Treatment(roles, MAX_FLOAT_CHANNELS),
    }
    by_error = copy.copy(baseline)
    if isinstance(by_error, RepQViT):
        by_error.range_rule = "output_error"
    ways = [Way(ALONE, baseline, nothing)]
    if isinstance(baseline, RepQViT):
        ways.append(Way("ranges", by_error, nothing))
    ways += [Way(name, _with(by_error, each), nothing) for name, each in treatments.items()]
    if fc2 in spec.linears() and fc2 not in baseline.keep_float:
        kept = copy.copy(by_error)
        kept.keep_float = baseline.keep_float | {fc2}
        ways.append(Way("fc2_float", kept, nothing))
    if not config.is_empty:
        ways.append(Way(REGCACHE, baseline, config))
        if isinstance(baseline, RepQViT):
            ways.append(Way("regcache_ranges", by_error, config))
        both = _with(by_error, treatments["treated"])
        ways.append(Way("regcache_treated", both, config))
    return ways


def _with(baseline: Baseline, treatment: Treatment) -> Baseline:
    changed = copy.copy(baseline)
    changed.treatment = treatment
    return changed
