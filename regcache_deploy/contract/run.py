"""Measure candidates in their order, decide, and write the file that is kept."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from regcache_engines.bundle import Bundle
from regcache_engines.engine import Engine
from regcache_engines.files import atomic_write_bytes
from regcache_export.bundle import write_bundle
from regcache_export.plan import Plan
from regcache_export.trace import in_layout

from ..bench.engines import engine_version, open_engine
from ..bench.environment import busy_warning, describe_machine
from ..bench.subjects import float_plan
from ..bench.timing import Interval, interleave
from ..errors import BundleError
from ..planning import calibration_of
from ..progress import Reporter
from ..search.keep_float import FloatChoice
from .candidates import SELECT_IMAGES, Candidates
from .data import JudgeData, engine_features, head_of, load_judge_data, measure_drop
from .decide import FLOAT, INT8, MIXED, Contract, Decision, Drop, Measured, Skipped, decide

ROUNDS, WARMUP = 40, 3
METRICS = {
    "top1": "top-1",
    "changed": "images whose class changed (no labels: an upper bound of the loss of top-1)",
    "cosine": "100 x (1 - mean cosine) of the features (no zero-shot head)",
}


@dataclass(frozen=True)
class ContractOptions:
    """What `regcache build` asks for.

    Attributes:
        engine: `onnxruntime` or `openvino`.
        output: gets `NAME.decision.json`, and `NAME-FORM/` with bundle and plan where another file
            than the bundle itself is kept.
        data, limit, seed: images to judge on; see `load_judge_data`.
        batch, threads: what the speed-up is measured at.
        seconds: for the timing of one candidate.
        plan_folder: where plan.json is; None looks beside the bundle.
    """

    engine: str
    output: Path
    contract: Contract
    data: str | None = None
    limit: int | None = None
    seed: int = 0
    batch: int = 1
    threads: int | None = None
    seconds: float = 20.0
    plan_folder: Path | None = None


def run_contract(path: Path, options: ContractOptions, reporter: Reporter) -> dict[str, Any]:
    """Decide which file of a bundle to deploy.

    Returns:
        The decision as JSON: what was kept and where it is, and every figure.

    Raises:
        BundleError: damaged, a float bundle, or without its plan.
        ConfigError, DataError: no images to judge on.
        EngineError: the engine is missing.
    """
    bundle = Bundle.open(path)
    if not bundle.manifest.get("quantized_linears"):
        raise BundleError(f"{path} has no quantized linear: there is nothing to decide")
    if options.threads:
        torch.set_num_threads(options.threads)
    machine = describe_machine()
    with tempfile.TemporaryDirectory(prefix="regcache-build-") as scratch:
        candidates = Candidates.of(bundle, options.plan_folder, Path(scratch), reporter)
        data = load_judge_data(bundle, options.data, options.limit, options.seed)
        measurement = Measurement(candidates, data, options)
        decision = decide(
            [measurement.try_int8, measurement.try_mixed, measurement.try_float], options.contract
        )
    place = write_kept(bundle, candidates, decision, options, reporter)
    document = decision.to_json() | {
        "path": str(place),
        "bundle": str(path),
        "drop_measured_on": data.source,
        "drop_metric": METRICS[decision.verdicts[0].candidate.drop.metric]
        if isinstance(decision.verdicts[0].candidate, Measured)
        else "",
        "images": {"judged_on": len(data.judge), "chosen_on": measurement.selected},
        "interval": "95 % bootstrap over paired images, and over paired rounds for speed",
        "speed_measured_at": {
            "engine": f"{options.engine} {engine_version(options.engine)}",
            "batch": options.batch,
            "threads": options.threads or "default",
            "control": vars(measurement.control) if measurement.control else None,
        },
        "environment": machine,
        "warning": busy_warning(machine["load"], machine["cores"]),
        "caution": (bundle.manifest.get("provenance") or {}).get("caution"),
    }
    name = path.resolve().name.removesuffix(".regcache")
    atomic_write_bytes(
        options.output / f"{name}.decision.json", (json.dumps(document, indent=1) + "\n").encode()
    )
    return document


@dataclass
class Measurement:
    """Measures each candidate when it is asked for.

    Attributes:
        selected: images that chose the linears in float; 0 where nothing was chosen.
        control: the float file against itself: how far from 1 the machine puts equal files.
    """

    candidates: Candidates
    data: JudgeData
    options: ContractOptions
    selected: int = 0
    control: Interval | None = None
    opener: Callable[..., Engine] = open_engine

    def try_int8(self) -> Measured:
        """The bundle as exported."""
        return self._measure(INT8, self.candidates.int8)

    def try_mixed(self) -> Measured | Skipped:
        """As few linears in float as keep the drop."""
        limit = self.options.contract.max_drop
        choice = self.candidates.choose_layers(self.data, limit, self.options.seed)
        self.selected = min(len(self.data.select), SELECT_IMAGES)
        reason = refuse_mixed(choice, len(self.candidates.plan.linears))
        if reason:
            return Skipped(MIXED, reason)
        return self._measure(MIXED, self.candidates.mixed(choice.names), choice.names)

    def try_float(self) -> Measured:
        """The float file: no drop against itself, and just as fast."""
        metric = "cosine" if not self.candidates.bundle.has_text_features else "changed"
        metric = "top1" if self.data.judge_labels is not None else metric
        drop = Drop(0.0, 0.0, 0.0, len(self.data.judge), metric)
        return Measured(FLOAT, drop, Interval(1.0, 1.0, 1.0, 0))

    def _measure(self, form: str, path: Path, layers: frozenset[str] = frozenset()) -> Measured:
        options, candidates = self.options, self.candidates
        preprocess, fixed = candidates.bundle.preprocess, candidates.options.batch
        size = fixed or options.batch
        stage = candidates.reporter.stage
        with ExitStack() as stack:
            engines = {
                name: stack.enter_context(
                    self.opener(options.engine, file, options.threads, [size], candidates.scratch)
                )
                for name, file in {
                    form: path,
                    FLOAT: candidates.float_file,
                    "control": candidates.float_file,
                }.items()
            }
            with stage(f"{form}: accuracy on {len(self.data.judge)} images"):
                found, reference = (
                    engine_features(engines[name], self.data.judge, preprocess, fixed)
                    for name in (form, FLOAT)
                )
            drop = measure_drop(
                reference,
                found,
                head_of(candidates.bundle),
                self.data.judge_labels,
                candidates.plan.logit_scale,
                options.seed,
            )
            with stage(f"{form}: speed at batch {size}"):
                runs = {}
                for name, engine in engines.items():
                    images = in_layout(
                        self.data.judge[:1].repeat(size, 0), engine.pixels, preprocess
                    )
                    runs[name] = lambda engine=engine, images=images: engine.infer(images)
                samples = interleave(
                    runs,
                    ROUNDS,
                    seconds=options.seconds,
                    warmup=WARMUP,
                    turn_ms=30,
                    pause=0.005,
                )
        self.control = samples.ratio("control", FLOAT)
        return Measured(form, drop, samples.ratio(FLOAT, form), tuple(sorted(layers)))


def refuse_mixed(choice: FloatChoice, linears: int) -> str:
    """Why a mixed file would be no other than INT8 or float, or nothing."""
    if not choice.names:
        return (
            "on the choosing images INT8 keeps the drop with no linear in float, so a mixed file "
            "would be the same one"
        )
    if not choice.within:
        return (
            f"in simulation it loses {-choice.value:.2f} points on the choosing images even with "
            "all linears in float: that is the price of RegCache itself here"
        )
    if len(choice.names) == linears:
        return "in simulation the drop is kept with all linears in float only"
    return ""


def write_kept(
    bundle: Bundle,
    candidates: Candidates,
    decision: Decision,
    options: ContractOptions,
    reporter: Reporter,
) -> Path:
    """The kept file as a bundle with its plan beside it; INT8 as exported stays where it is."""
    kept = decision.kept
    options.output.mkdir(parents=True, exist_ok=True)
    if kept.form == INT8:
        return bundle.path
    plan = candidates.plan
    chosen = float_plan(plan)
    if kept.form == MIXED:
        chosen = candidates.mixed_plan(frozenset(kept.float_layers))
    form = {"form": kept.form, "float_layers": list(kept.float_layers)}
    chosen = replace(chosen, provenance=dict(plan.provenance) | {"build": form})
    name = bundle.path.resolve().name.removesuffix(".regcache")
    # a folder of its own: the plan lies beside the bundle, and another one may be in the output
    folder = options.output / f"{name}-{kept.form}"
    place = folder / f"{folder.name}.regcache"
    with reporter.stage(f"writing {place}"):
        chosen.save(folder)
        write_bundle(chosen, place, options=candidates.options)
        if kept.form == MIXED:
            certify_again(bundle, place, chosen, candidates)
    return place


def certify_again(bundle: Bundle, place: Path, plan: Plan, candidates: Candidates) -> None:
    """Give the mixed bundle a certificate of its own, on the images of the first one's."""
    from regcache_export.targets import find_target
    from regcache_export.verify import read_certificate

    from ..certify import certify_bundle

    if find_target(candidates.options.target).form != "as_written":
        return
    try:
        pixels = read_certificate(bundle)[1]
    except BundleError:
        return  # nothing to certify on; `regcache verify` says so
    certify_bundle(place, plan, candidates.options, calibration_of(plan), torch.from_numpy(pixels))
