"""Other ways to an INT8 file than the exported one, calibrated again from the plan's weights.

A bundle holds one way of its quantizer. Where it does not keep the contract on the images that are
judged on, another one may: the quantizer alone, smoothing, RegCache where it was left out of the
choice. The plan's weights are the float encoder's (its folds are exact), so each way is calibrated
from them, on the first of the selecting images, and compared with float on all of these. The
judging ones are not looked at.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from regcache_engines.preprocess import in_layout
from regcache_export.plan import Plan
from regcache_export.targets import find_target

from ..encoders.regcache import RegCacheConfig
from ..errors import ConfigError
from ..evaluation.corners import calibrate_corner, simulate
from ..quantization.baselines import Baseline
from ..quantization.baselines.naive import Naive
from ..quantization.baselines.repqvit import RepQViT
from ..quantization.plan import make_plan
from ..quantization.plan_baseline import baseline_of
from ..quantization.simulate import Calibration, Quantization
from ..search.graph_cost import Operators, graph_cost
from ..search.settings import ALONE, PAPER, REGCACHE
from ..search.ways import Way, ways_of
from .candidates import SELECT_IMAGES, Candidates
from .data import BATCH, JudgeData, head_of, measure_drop
from .decide import Drop

CALIBRATION_IMAGES = 64
"""Most selecting images that set ranges: as many as an export's default."""

NOTHING = RegCacheConfig(0, 0, 0, 0)


@dataclass(frozen=True)
class Tried:
    """A way on the selecting images, in simulation.

    Attributes:
        cost: CPU time of its graph, by arithmetic.
    """

    way: Way
    calibration: Calibration = field(repr=False)
    drop: Drop
    cost: float


@dataclass
class OtherWays:
    """The ways that the exported one was not.

    Attributes:
        candidates: of the bundle.
        data: selecting images.
        seed: of the bootstrap, and of a quantizer's probes.
    """

    candidates: Candidates
    data: JudgeData
    seed: int

    @cached_property
    def refused(self) -> str:
        """Why there are none here; empty where there are."""
        plan = self.candidates.plan
        if find_target(self.candidates.options.target).form == "tensorrt":
            return (
                "other ways are calibrated again for CPUs only: TensorRT's scales are settled on "
                "whole images by an export (--recipe NAME --target tensorrt)"
            )
        if plan.published:
            return "the bundle has published quantizers, which have one form only"
        try:
            self._baseline()
        except ConfigError as error:
            return str(error)
        return ""

    @property
    def has_regcache(self) -> bool:
        return self.candidates.plan.regcache is not None

    @property
    def exported(self) -> str:
        """Name of the exported way; an older plan does not say."""
        name = str(self.candidates.plan.provenance.get("recipe") or "")
        return REGCACHE if name == PAPER else name or (REGCACHE if self.has_regcache else ALONE)

    @property
    def images(self) -> int:
        """Selecting images: all compare, the first ones calibrate."""
        return min(len(self.data.select), SELECT_IMAGES)

    def _baseline(self) -> Baseline:
        """The plan's quantizer as it was before a way changed it."""
        plan = self.candidates.plan
        baseline = baseline_of(plan, self.candidates.calibration, self.seed)
        baseline.kept_inputs = None  # the float weights are whole; every way treats its own inputs
        if isinstance(baseline, RepQViT):
            baseline.range_rule = "percentile"
        if self.exported == "fc2_float" and self._layer:
            baseline.keep_float -= {self._fc2}
        return baseline

    @property
    def _layer(self) -> str:
        """The sensitive layer; an older plan names it by the block of its deletion, or not."""
        plan = self.candidates.plan
        if plan.regcache is not None:
            return f"blocks.{plan.regcache.delete_block}.mlp.fc2"
        return str(plan.provenance.get("sensitive_layer") or "")

    @property
    def _fc2(self) -> str:
        return f"blocks.{self._layer.split('.')[1]}.mlp.fc2"

    @cached_property
    def ways(self) -> list[Way]:
        """All but the exported one. RegCache's are there where the plan has a register."""
        plan = self.candidates.plan
        config, layer = plan.regcache or NOTHING, self._layer
        found = ways_of(self._baseline(), config, layer or "blocks.0.mlp.fc2", plan.encoder)
        known = [way for way in found if layer or way.name != "fc2_float"]
        return [way for way in known if way.name != self.exported]

    @cached_property
    def _pixels(self) -> Tensor:
        pixels = self.data.selecting(self.images)  # with copies behind them, where those judge
        return torch.from_numpy(in_layout(pixels, None, self.candidates.bundle.preprocess))

    @cached_property
    def _reference(self) -> Tensor:
        encoder = self.candidates.calibration.encoder
        plain = Calibration(encoder, Quantization())
        return simulate(plain, self._pixels.split(BATCH), lambda n: None)

    @torch.no_grad()
    def calibrate(self, way: Way) -> Calibration:
        """The way's ranges, on the first selecting images."""
        before = self.candidates.calibration
        tokens = before.encoder.embed(self._pixels[:CALIBRATION_IMAGES])
        register = {} if before.regcache is None else dict(before.regcache.register)
        return calibrate_corner(way.baseline, before.encoder, tokens, way.config, register)

    @cached_property
    def alone(self) -> Calibration:
        """The quantizer without RegCache."""
        return self.calibrate(Way(ALONE, self._baseline(), NOTHING))

    @cached_property
    def tried(self) -> list[Tried]:
        """Every way, calibrated and compared with float; the expensive part."""
        found = []
        with self.candidates.reporter.stage("other ways, calibrated", len(self.ways)) as advance:
            for way in self.ways:
                found.append(self._try(way))
                advance(1)
        return found

    def _try(self, way: Way) -> Tried:
        plan = self.candidates.plan
        calibration = self.alone if way.name == ALONE else self.calibrate(way)
        features = simulate(calibration, self._pixels.split(BATCH), lambda n: None)
        labels = self.data.select_labels
        drop = measure_drop(
            self._reference,
            features,
            head_of(self.candidates.bundle),
            None if labels is None else labels[: self.images],
            plan.logit_scale,
            self.seed,
            self.data.copied,
        )
        cost = graph_cost(plan.encoder, way.config, Operators.of(calibration))
        return Tried(way, calibration, drop, cost)

    def choose(self, max_drop: float) -> Tried | str:
        """The cheapest way that keeps the drop on the selecting images, or why there is none."""
        within = [each for each in self.tried if each.drop.value <= max_drop]
        if within:
            least = min(each.cost for each in within)
            # a per cent of a computed cost is no difference
            cheap = [each for each in within if each.cost <= 1.01 * least]
            return min(cheap, key=lambda each: each.drop.value)
        best = min(self.tried, key=lambda each: each.drop.value)
        return (
            f"in simulation none of {len(self.tried)} other ways keeps the drop on the choosing "
            f"images; the best is {best.way.title} with {best.drop.value:.2f} points"
        )

    def plan(self, way: str, calibration: Calibration) -> Plan:
        """The plan of another way, with what was calibrated again in its provenance."""
        plan = self.candidates.plan
        again = {
            "images": min(self.images, CALIBRATION_IMAGES),
            "data": self.data.source,
            "place": self.data.place,
            "seed": self.seed,
        }
        provenance: dict[str, Any] = {**plan.provenance, "recipe": way, "recalibrated": again}
        # of the exported way; these would be wrong here
        for name in ("quantizers", "range_rule", "treatment", "search_value"):
            provenance.pop(name, None)
        # for whoever calibrates this plan again: as `baseline_of` reads them
        baseline = next((w.baseline for w in self.ways if w.name == way), self._baseline())
        if isinstance(baseline, RepQViT):
            provenance["range_rule"] = baseline.range_rule
        if isinstance(baseline, Naive):
            again["observer"] = baseline.observer
        regcache = calibration.regcache
        return make_plan(
            calibration,
            regcache_config=None if regcache is None else regcache.config,
            preprocess=plan.preprocess,
            text_features=None
            if plan.text_features is None
            else torch.from_numpy(plan.text_features.copy()),
            labels=plan.labels,
            logit_scale=plan.logit_scale,
            provenance=provenance,
        )
