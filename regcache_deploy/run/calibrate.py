"""Measure the ranges of a finished plan again, on a stream of any number of images.

    plan + images -> running ranges and histograms -> plan -> bundle with certificate

What it takes does not grow with their number. `naive` keeps no image. PTQ4ViT and RepQ-ViT search
on whole tensors, layer behind layer: they get a fixed number of images, a sample of the stream.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from regcache_engines.bundle import Bundle
from regcache_engines.files import gone_at_the_end, held
from regcache_engines.preprocess import Preprocess
from regcache_export.bundle import copy_text, seal_bundle, write_bundle
from regcache_export.graph.probes import probe_places
from regcache_export.plan import Plan
from regcache_export.targets import GraphOptions, find_target

from ..bundling.certify import certify_bundle
from ..bundling.monitor import monitor_entry
from ..data.sources import open_data
from ..data.stream import ImageStream
from ..errors import BundleError, ConfigError
from ..quantization.baselines.table import with_observer
from ..quantization.histogram import Observer
from ..quantization.plan import calibration_of, make_plan
from ..quantization.plan_baseline import baseline_of
from ..quantization.reservoir import Reservoir
from ..quantization.settings import BASELINE_NAMES, check_observer_of
from ..quantization.simulate import Calibration
from ..quantization.streaming import StreamedLimits, recalibrate_stream
from ..work.count import peak_memory
from ..work.devices import describe, log_device, use_device
from ..work.paths import require_own_plan
from ..work.progress import Reporter
from ..work.ray_team import open_team
from ..work.workers import Team
from .options import ExportOptions

CALIBRATED = "calibrated.regcache"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecalibrateOptions:
    """Options of `regcache calibrate`.

    Attributes:
        plan: folder of plan.json.
        data: as `regcache eval --data`.
        observer: `minmax`, `percentile` or `mse`.
        images: at most so many; None takes all.
        keep_images: of the stream, for the baselines that search on whole tensors.
        output: result folder; never the plan's own.
        certificate_images: images of the stream that travel in the bundle.
        threads: of each worker.
        decoders: threads that decode; 0 takes one a core, at most 8.
        workers: as `open_team` takes it; they observe ranges for `naive`.
        device: where torch computes, as `find_device` takes it.
    """

    plan: Path
    data: str
    output: Path
    observer: str = "minmax"
    images: int | None = None
    keep_images: int = 64
    batch_size: int = 32
    threads: int | None = None
    decoders: int = 0
    workers: str | None = None
    certificate_images: int = 32
    seed: int = 0
    device: str = "auto"


@torch.no_grad()
def recalibrate(options: RecalibrateOptions, reporter: Reporter) -> dict[str, Any]:
    """Stream, and write plan and bundle into the output folder.

    Returns:
        What was found, ready for JSON: `images`, `kept_images`, `observer`, `layers` with the
        scale before and after and, for `naive`, the share of the largest value that is kept,
        `warnings`, `bundle`, `observer_bytes`, `peak_memory_bytes` of the process up to the
        end of the calibration, and the device as `describe` has it.

    Raises:
        BundleError: no readable plan, or one that quantizes nothing.
        ConfigError: a plan whose ranges a stream cannot set, an observer for another baseline
            than naive, or the output is the plan's own folder.
        DataError: no images, too many unreadable ones, or non-finite activations.
        VerificationError: the graph is not the simulated one.
    """
    plan = Plan.load(options.plan)
    _check(plan, options)
    streams = plan.provenance["baseline"] == "naive"
    device = use_device(options.device)
    before = calibration_of(plan).to(device)
    log_device(device)
    with reporter.stage(f"opening {options.data}"):
        stream = open_data(
            options.data,
            Preprocess(plan.preprocess),
            limit=options.images,
            seed=options.seed,
            train=True,
            labels=False,
        )
    stream.decoders = options.decoders
    kept: list[Tensor] = []
    passes = 1 if options.observer == "minmax" else 2
    total = None if stream.length is None else passes * stream.length
    what = f"ranges by {options.observer}, {passes} pass(es)" if streams else "sample of the images"
    with reporter.stage(what, total) as advance:

        def images() -> Iterator[Tensor]:
            kept.clear()  # of an earlier pass: the same images
            for batch in stream.batches(options.batch_size):
                if (missing := options.certificate_images - sum(map(len, kept))) > 0:
                    kept.append(torch.from_numpy(batch.pixels[:missing].copy()))
                pixels = torch.from_numpy(batch.images)
                del batch  # before the next one is decoded
                yield pixels
                advance(len(pixels))
                del pixels

        if streams:
            with open_team(options.workers, device, options.threads) as team:
                observer = cast(Observer, options.observer)
                after, found = _by_stream(before, images, observer, team)
        else:
            after, found = _by_sample(plan, before, images, options)
    peak = peak_memory()  # a certificate comes behind it, of its fixed images
    pixels = torch.cat(kept)[: options.certificate_images]
    before, after = before.to("cpu"), after.to("cpu")
    changed = _plan(plan, after, options, stream, found)
    with reporter.stage("writing the graph and its certificate"):
        bundle = _write(changed, options, after, pixels, plan)
    warnings = [*stream.warnings(), *after.warnings]
    for line in warnings:
        logger.warning("%s", line)
    return {
        "plan": str(options.output),
        "bundle": str(bundle),
        "observer": options.observer if streams else None,
        "images": found.images,
        "kept_images": 0 if streams else min(options.keep_images, found.images),
        "layers": _layers(before, after, found),
        "warnings": warnings,
        "observer_bytes": found.state_bytes,
        "peak_memory_bytes": peak,
        **describe(device),
    }


Images = Callable[[], Iterator[Tensor]]
"""Makes a fresh iterator over images `[b, 3, H, W]`."""


def _by_stream(
    before: Calibration, images: Images, observer: Observer, team: Team | None
) -> tuple[Calibration, StreamedLimits]:
    def tokens() -> Iterator[Tensor]:
        for part in images():
            embedded = before.encoder.embed(part)
            del part
            yield embedded
            del embedded

    return recalibrate_stream(before, tokens, observer, team)


def _by_sample(
    plan: Plan, before: Calibration, images: Images, options: RecalibrateOptions
) -> tuple[Calibration, StreamedLimits]:
    """The plan's baseline on a sample of fixed size, from the plan's own folded weights."""
    reservoir = Reservoir(options.keep_images, options.seed)
    for part in images():
        reservoir.add(part)
    tokens = before.encoder.embed(reservoir.sample)
    baseline = baseline_of(plan, before, options.seed)
    after = baseline.calibrate(before.encoder, tokens, regcache=before.regcache)
    return after, StreamedLimits({}, {}, reservoir.seen, reservoir.state_bytes)


def _check(plan: Plan, options: RecalibrateOptions) -> None:
    baseline = plan.provenance.get("baseline")
    if not plan.linears and not plan.published:
        raise BundleError(
            f"the plan in {options.plan} quantizes nothing; export it with a baseline"
        )
    if baseline not in BASELINE_NAMES or plan.matmuls:
        what = "INT8 attention" if plan.matmuls else f"baseline '{baseline}'"
        raise ConfigError(
            f"the plan in {options.plan} has {what}, whose ranges a stream cannot set; "
            f"export with --baseline {'|'.join(BASELINE_NAMES)} and a CPU target"
        )
    if find_target(graph_options_of(plan).target).form == "tensorrt":
        raise ConfigError(
            f"the plan in {options.plan} is for TensorRT, whose scales and zero points an export "
            "settles for float16, layer by layer, on whole images; export it again with "
            "--target tensorrt on these images"
        )
    check_observer_of(baseline, options.observer)
    if options.keep_images != RecalibrateOptions.keep_images and baseline == "naive":
        raise ConfigError(
            f"--keep-images {options.keep_images}: naive keeps none, it sees all; take --images"
        )
    if options.workers is not None and baseline != "naive":
        raise ConfigError(
            f"--workers: {baseline} searches on whole tensors, layer behind layer, in one process; "
            "workers observe the ranges of naive"
        )
    if options.output.resolve() == options.plan.resolve():
        raise ConfigError("--output is the plan's own folder; choose another one")
    require_own_plan(options.output, CALIBRATED)


def _plan(
    plan: Plan,
    calibration: Calibration,
    options: RecalibrateOptions,
    stream: ImageStream,
    found: StreamedLimits,
) -> Plan:
    head = None if plan.text_features is None else torch.from_numpy(plan.text_features.copy())
    measured = {"images": found.images, "data": stream.source, "seed": options.seed}
    provenance = {**plan.provenance, "recalibrated": measured}
    if found.limits:
        measured |= {"observer": options.observer}
        if "quantizers" in provenance:
            provenance["quantizers"] = with_observer(provenance["quantizers"], options.observer)
    else:
        measured |= {"kept_images": min(options.keep_images, found.images)}
    return make_plan(
        calibration,
        regcache_config=plan.regcache,
        preprocess=plan.preprocess,
        text_features=head,
        labels=plan.labels,
        logit_scale=plan.logit_scale,
        provenance=provenance,
        strict=bool(plan.published),
    )


def _write(
    plan: Plan, options: RecalibrateOptions, calibration: Calibration, pixels: Tensor, first: Plan
) -> Path:
    graph = graph_options_of(plan)
    graph = replace(graph, probes=min(graph.probes, len(probe_places(plan))))
    with held(options.output):
        draft = write_bundle(plan, options.output / "calibrated.unverified", options=graph)
        with gone_at_the_end(draft):
            found = monitor_entry(draft, pixels.numpy())
            found |= _text_of_the_first(options.plan, first, draft)
            certify_bundle(draft, plan, graph, calibration, pixels, found)
            plan.save(options.output)
            return seal_bundle(draft, options.output / CALIBRATED, found)


def _text_of_the_first(folder: Path, plan: Plan, draft: Path) -> dict[str, Any]:
    """Copy the text tower of the plan's own bundle, where that lies beside the plan."""
    for path in sorted(folder.glob("*.regcache")):
        try:
            bundle = Bundle.open(path)
        except BundleError as error:
            logger.warning("no text tower is taken from %s: %s", path, error)
            continue
        if bundle.manifest.get("provenance") == plan.provenance:
            return copy_text(bundle, draft)
    return {}


def graph_options_of(plan: Plan) -> GraphOptions:
    """How the plan's own bundle was written; the defaults where the plan does not say."""
    return _options_of(plan).graph


def _options_of(plan: Plan) -> ExportOptions:
    stored = plan.provenance.get("options")
    if not isinstance(stored, dict):
        return ExportOptions()
    known = {f.name for f in fields(ExportOptions)} - {"data", "eval_data", "output"}
    return ExportOptions(**{name: stored[name] for name in known & stored.keys()})


def _layers(
    before: Calibration, after: Calibration, found: StreamedLimits
) -> dict[str, dict[str, float]]:
    layers = {}
    for name, layer in after.quantization.linears.items():
        old = before.quantization.linears[name].input
        scales = [float(q.scale) for q in (old, layer.input)]  # type: ignore[attr-defined]
        layers[name] = {"before": scales[0], "after": scales[1]}
        if name in found.limits:
            largest = found.largest[name]
            layers[name]["kept_of_largest"] = found.limits[name] / largest if largest else 1.0
    return layers
