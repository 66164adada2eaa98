"""Measure one candidate when it is asked for: its accuracy and its speed beside the float file."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from torch import Tensor

from regcache_engines.engine import Engine
from regcache_engines.errors import EngineError
from regcache_engines.preprocess import in_layout

from ..bench.timing import Interval, Samples, interleave
from ..evaluation.engines import open_engine
from ..quantization.keep_float import FloatChoice
from ..search.settings import ALONE
from .candidates import SELECT_IMAGES, Candidates
from .data import JudgeData, engine_features, head_of, measure_drop
from .decide import FLOAT, INT8, MIXED, PLAIN_MIXED, UNMERGED, WAY, Drop, Measured, Skipped
from .options import ContractOptions
from .other_ways import OtherWays
from .tensorrt import Builds

ROUNDS, WARMUP = 40, 3


@dataclass
class Measurement:
    """Measures each candidate when it is asked for.

    Attributes:
        builds: engines of the candidates, where the runtime is TensorRT.
        selected: images that chose linears in float or another way; 0 where nothing was chosen.
        control: the float file against itself: how far from 1 the machine puts equal files.
        opener: loads a file of any other runtime.
    """

    candidates: Candidates
    data: JudgeData
    options: ContractOptions
    builds: Builds | None = None
    selected: int = 0
    control: Interval | None = None
    opener: Callable[..., Engine] = open_engine

    def try_int8(self) -> Measured | Skipped:
        """The bundle as exported."""
        return self._measure(INT8, self.candidates.int8)

    def try_unmerged(self) -> Measured | Skipped:
        """The same quantizers and RegCache without merging."""
        return self._measure(UNMERGED, self.candidates.unmerged)

    def try_mixed(self) -> Measured | Skipped:
        """As few linears in float as keep the drop."""
        limit = self.options.contract.max_drop
        choice = self.candidates.choose_layers(self.data, limit, self.options.seed)
        self.selected = min(len(self.data.select), SELECT_IMAGES)
        quantization = self.candidates.calibration.quantization
        reason = refuse_mixed(choice, len(quantization.linears), bool(quantization.matmuls))
        if reason:
            return Skipped(MIXED, reason)
        return self._measure(MIXED, self.candidates.mixed(choice.names), choice.names)

    @cached_property
    def ways(self) -> OtherWays:
        return OtherWays(self.candidates, self.data, self.options.seed)

    def try_way(self) -> Measured | Skipped:
        """Another way of the quantizer, all linears in INT8, calibrated again."""
        if self.ways.refused:
            return Skipped(WAY, self.ways.refused)
        self.selected = self.ways.images
        found = self.ways.choose(self.options.contract.max_drop)
        if isinstance(found, str):
            return Skipped(WAY, found)
        plan = self.ways.plan(found.way.name, found.calibration)
        path = self.candidates.calibrated_again(WAY, plan)
        return self._measure(WAY, path, way=found.way.name)

    def try_plain_mixed(self) -> Measured | Skipped:
        """The quantizer without RegCache, calibrated again, as few linears in float as needed."""
        if self.ways.refused:
            return Skipped(PLAIN_MIXED, self.ways.refused)
        if not self.ways.has_regcache:
            return Skipped(PLAIN_MIXED, "the exported file has no RegCache to leave out")
        limit, alone = self.options.contract.max_drop, self.ways.alone
        choice = self.candidates.choose_layers(self.data, limit, self.options.seed, alone)
        self.selected = self.ways.images
        reason = refuse_mixed(choice, len(alone.quantization.linears), regcache=False)
        if reason:
            return Skipped(PLAIN_MIXED, reason)
        part = replace(alone, quantization=alone.quantization.without(choice.names))
        path = self.candidates.calibrated_again(PLAIN_MIXED, self.ways.plan(ALONE, part))
        return self._measure(PLAIN_MIXED, path, choice.names, ALONE)

    def try_float(self) -> Measured:
        """The float file: no drop against itself, and just as fast.

        Raises:
            EngineError: it does not run, so nothing is left to deploy.
        """
        if self.control is None:  # nothing was timed beside it: at least it must run
            path = self.candidates.float_file
            if self.builds:
                self.builds.build(FLOAT, path)
            with self._open(path) as engine:
                self._features(engine)
        metric = "cosine" if not self.candidates.bundle.has_text_features else "changed"
        metric = "top1" if self.data.judge_labels is not None else metric
        metric = "instances" if self.data.copied else metric
        drop = Drop(0.0, 0.0, 0.0, len(self.data.judge), metric)
        return Measured(FLOAT, drop, Interval(1.0, 1.0, 1.0, 0))

    def _measure(
        self, form: str, path: Path, layers: frozenset[str] = frozenset(), way: str = ""
    ) -> Measured | Skipped:
        names, reference_file = tuple(sorted(layers)), self.candidates.float_file
        if self.builds:
            refused = self.builds.build(form, path)
            if refused:
                return Skipped(form, refused, names, way)
            self.builds.build(FLOAT, reference_file)
        files = {form: path, FLOAT: reference_file, "control": reference_file}
        stage = self.candidates.reporter.stage
        with ExitStack() as stack:
            engines = {name: stack.enter_context(self._open(file)) for name, file in files.items()}
            with stage(f"{form}: accuracy on {len(self.data.judge)} images"):
                reference = self._features(engines[FLOAT])
                try:
                    found = self._features(engines[form])
                except EngineError as error:  # the float file ran, so it is this candidate's own
                    return Skipped(form, f"it does not run: {error}", names, way)
            drop = measure_drop(
                reference,
                found,
                head_of(self.candidates.bundle),
                self.data.judge_labels,
                self.candidates.plan.logit_scale,
                self.options.seed,
                self.data.copied,
            )
            with stage(f"{form}: speed at batch {self._timed_batch}"):
                samples = self._time(engines)
        self.control = samples.ratio("control", FLOAT)
        return Measured(form, drop, samples.ratio(FLOAT, form), names, way)

    @property
    def _timed_batch(self) -> int:
        return self.candidates.options.batch or self.options.batch

    def _open(self, path: Path) -> Engine:
        options = self.options
        opener = self.builds.open if self.builds else self.opener
        return opener(
            options.engine, path, options.threads, [self._timed_batch], self.candidates.scratch
        )

    def _features(self, engine: Engine) -> Tensor:
        """Features `[n, E]` of the judging images."""
        size = self.candidates.options.batch or (self.builds.step if self.builds else None)
        return engine_features(engine, self.data.judging, self.candidates.bundle.preprocess, size)

    def _time(self, engines: dict[str, Engine]) -> Samples:
        runs = {}
        image = self.data.judge[:1].repeat(self._timed_batch, 0)
        for name, engine in engines.items():
            images = in_layout(image, engine.pixels, self.candidates.bundle.preprocess)
            runs[name] = lambda engine=engine, images=images: engine.infer(images)
        return interleave(
            runs, ROUNDS, seconds=self.options.seconds, warmup=WARMUP, turn_ms=30, pause=0.005
        )


def refuse_mixed(
    choice: FloatChoice, linears: int, int8_attention: bool = False, regcache: bool = True
) -> str:
    """Why a mixed file would be no other than INT8 or float, or nothing."""
    rest = "RegCache and of INT8 attention" if int8_attention else "RegCache itself"
    if not choice.names:
        return (
            "on the choosing images INT8 keeps the drop with no linear in float, so a mixed file "
            "would be the same one"
        )
    if len(choice.names) == linears and not regcache:
        return "in simulation the drop is kept with all linears in float only: the float file"
    if not choice.within:
        return (
            f"in simulation it loses {-choice.value:.2f} points on the choosing images even with "
            f"all linears in float: that is the price of {rest} here"
        )
    if len(choice.names) == linears:
        return "in simulation the drop is kept with all linears in float only"
    return ""
