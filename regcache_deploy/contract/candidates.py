"""Make the candidates' files: INT8 as exported, unmerged, with some linears in float, and float."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch

from regcache_engines.bundle import MODEL, Bundle
from regcache_engines.files import atomic_write_bytes
from regcache_engines.preprocess import in_layout
from regcache_export.bundle_graph import graph_options
from regcache_export.graph import build_model, serialize
from regcache_export.graph.probes import add_probes, probe_places
from regcache_export.plan import Plan
from regcache_export.plan_beside import load_plan
from regcache_export.targets import GraphOptions

from ..bench.subjects import float_plan
from ..evaluation.corners import simulate
from ..evaluation.layer_error import alone_errors
from ..quantization.keep_float import FloatChoice, choose_float_layers
from ..quantization.plan import calibration_of
from ..quantization.simulate import Calibration, Quantization
from ..work.progress import Reporter
from .data import BATCH, Array, JudgeData, head_of, measure_drop
from .decide import FLOAT, INT8, MIXED, UNMERGED, Measured

RANK_IMAGES = 16
"""Images that rank the linears; one pass of the encoder a linear."""

SELECT_IMAGES = 512
"""Most images that choose how many linears stay in float."""


@dataclass
class Candidates:
    """The files of one bundle.

    Attributes:
        bundle: as exported.
        plan: that it was written from.
        scratch: folder for files.
    """

    bundle: Bundle
    plan: Plan
    scratch: Path
    reporter: Reporter
    options: GraphOptions = field(init=False)
    again: dict[str, Plan] = field(default_factory=dict, init=False, repr=False)
    """Form -> plan that was calibrated again for it."""

    def __post_init__(self) -> None:
        self.options = graph_options(self.bundle)

    @classmethod
    def of(
        cls, bundle: Bundle, plan_folder: Path | None, scratch: Path, reporter: Reporter
    ) -> Candidates:
        """Raises BundleError where the plan is missing or belongs to another bundle."""
        return cls(bundle, load_plan(bundle, plan_folder), scratch, reporter)

    @cached_property
    def int8(self) -> Path:
        """A copy of the model that was checked: the bundle may be replaced while it is judged."""
        path = self.scratch / "int8.onnx"
        atomic_write_bytes(path, self.bundle.read(MODEL))
        return path

    @cached_property
    def float_file(self) -> Path:
        """No quantizers, no RegCache, no merging."""
        return self._write("float", float_plan(self.plan))

    @cached_property
    def unmerged_plan(self) -> Plan:
        """The plan with every token kept; its ranges are those that were set with merged ones."""
        return replace(self.plan, merge=None)

    @cached_property
    def unmerged(self) -> Path:
        return self._write("unmerged", self.unmerged_plan)

    def mixed_plan(self, layers: frozenset[str]) -> Plan:
        """The plan with some linears in float, and no token merged: it is asked for accuracy."""
        plan = self.unmerged_plan
        linears = {name: q for name, q in plan.linears.items() if name not in layers}
        published = {name: q for name, q in plan.published.items() if name not in layers}
        return replace(plan, linears=linears, published=published)

    def options_for(self, plan: Plan) -> GraphOptions:
        """The bundle's, with as many of its probes as the plan has codes for."""
        probes = min(self.options.probes, len(probe_places(plan)))
        return replace(self.options, probes=probes)

    def mixed(self, layers: frozenset[str]) -> Path:
        return self._write("mixed", self.mixed_plan(layers))

    def calibrated_again(self, form: str, plan: Plan) -> Path:
        """The file of a plan that is not the bundle's."""
        self.again[form] = plan
        return self._write(form, plan)

    def plan_for(self, kept: Measured) -> Plan:
        """The plan of a candidate that was measured."""
        if kept.form in self.again:
            return self.again[kept.form]
        if kept.form == MIXED:
            return self.mixed_plan(frozenset(kept.float_layers))
        if kept.form == UNMERGED:
            return self.unmerged_plan
        return self.plan if kept.form == INT8 else float_plan(self.plan)

    def file_of(self, kept: Measured) -> Path:
        """The ONNX file of a candidate that was measured."""
        if kept.form == FLOAT:
            return self.float_file
        return self.int8 if kept.form == INT8 else self._write(kept.form, self.plan_for(kept))

    @cached_property
    def calibration(self) -> Calibration:
        """Of the mixed files."""
        return calibration_of(self.unmerged_plan)

    def ranking(self, data: JudgeData, calibration: Calibration | None = None) -> list[str]:
        """Quantized linears, the one that costs most by itself first."""
        calibration = calibration or self.calibration
        images = self._normalized(data.select[:RANK_IMAGES])
        total = len(calibration.quantization.linears)
        with self.reporter.stage("what each linear costs by itself", total) as advance:
            errors = alone_errors(calibration, images, advance)
        return sorted(errors, key=lambda name: -errors[name])

    def choose_layers(
        self, data: JudgeData, max_drop: float, seed: int, calibration: Calibration | None = None
    ) -> FloatChoice:
        """The fewest of the most sensitive linears in float that keep the drop, in simulation.

        On the selecting images alone; the judging ones are not looked at.

        Args:
            calibration: whose linears; None is the bundle's.
        """
        whole = calibration or self.calibration
        head, encoder = head_of(self.bundle), self.calibration.encoder
        images = self._normalized(data.selecting(SELECT_IMAGES))
        labels = None if data.select_labels is None else data.select_labels[:SELECT_IMAGES]
        plain = Calibration(encoder, Quantization())
        reference = simulate(plain, images.split(BATCH), lambda n: None)
        scale = self.plan.logit_scale

        def score(names: frozenset[str]) -> float:
            part = replace(whole, quantization=whole.quantization.without(names))
            with self.reporter.stage(f"simulation with {len(names)} linears in float"):
                found = simulate(part, images.split(BATCH), lambda n: None)
            drop = measure_drop(reference, found, head, labels, scale, seed, data.copied)
            return -drop.value

        return choose_float_layers(self.ranking(data, whole), score, 0.0, max_drop)

    def _normalized(self, pixels: Array) -> torch.Tensor:
        return torch.from_numpy(in_layout(pixels, None, self.bundle.preprocess))

    def _write(self, name: str, plan: Plan) -> Path:
        path = self.scratch / f"{name}.onnx"
        options = self.options_for(plan)
        model = build_model(plan, options=options)
        add_probes(model, plan, options.probes)
        atomic_write_bytes(path, serialize(model))
        return path
