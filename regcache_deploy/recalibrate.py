"""Measure the ranges of a finished plan again, on a stream of any number of images.

    plan + images -> running ranges and histograms -> plan -> bundle with certificate

No image is kept: what it takes does not grow with their number. Only `naive` has ranges that a
stream can set; PTQ4ViT and RepQ-ViT search theirs on tensors of a few images (32 as published).
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from regcache_export.bundle import seal_bundle, write_bundle
from regcache_export.plan import Plan
from regcache_export.targets import GraphOptions

from .certify import certify_bundle
from .data.preprocess import Preprocess
from .data.sources import open_data
from .data.stream import ImageStream
from .errors import BundleError, ConfigError
from .options import ExportOptions
from .planning import calibration_of, make_plan
from .progress import Reporter
from .quantization.histogram import Observer
from .quantization.simulate import Calibration
from .quantization.streaming import StreamedLimits, recalibrate_stream
from .search.cost import peak_memory

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecalibrateOptions:
    """Options of `regcache calibrate`.

    Attributes:
        plan: folder of plan.json.
        data: as `regcache eval --data`.
        observer: `minmax`, `percentile` or `mse`.
        images: at most so many; None takes all.
        output: result folder; never the plan's own.
        certificate_images: images of the stream that travel in the bundle.
    """

    plan: Path
    data: str
    output: Path
    observer: str = "minmax"
    images: int | None = None
    batch_size: int = 32
    workers: int = 0
    certificate_images: int = 32
    seed: int = 0


@torch.no_grad()
def recalibrate(options: RecalibrateOptions, reporter: Reporter) -> dict[str, Any]:
    """Stream, and write plan and bundle into the output folder.

    Returns:
        What was found, ready for JSON: `images`, `observer`, `layers` with the scale before and
        after and the share of the largest value that is kept, `warnings`, `bundle`,
        `observer_bytes`, and `peak_memory_bytes` of the process up to the end of the stream.

    Raises:
        BundleError: no readable plan, or one that quantizes nothing.
        ConfigError: another baseline than naive, or the output is the plan's own folder.
        DataError: no images, too many unreadable ones, or non-finite activations.
        VerificationError: the graph is not the simulated one.
    """
    plan = Plan.load(options.plan)
    _check(plan, options)
    before = calibration_of(plan)
    stream = open_data(
        options.data,
        Preprocess(plan.preprocess),
        limit=options.images,
        seed=options.seed,
        train=True,
    )
    stream.workers = options.workers
    kept: list[Tensor] = []
    passes = 1 if options.observer == "minmax" else 2
    total = None if stream.length is None else passes * stream.length
    with reporter.stage(f"ranges by {options.observer}, {passes} pass(es)", total) as advance:

        def batches() -> Iterator[Tensor]:
            for batch in stream.batches(options.batch_size):
                if (missing := options.certificate_images - sum(map(len, kept))) > 0:
                    kept.append(batch.pixels[:missing].clone())
                yield before.encoder.embed(batch.images)
                advance(len(batch.images))

        after, found = recalibrate_stream(before, batches, cast(Observer, options.observer))
    peak = peak_memory()  # of the stream: a certificate comes behind it, of its fixed images
    pixels = torch.cat(kept)[: options.certificate_images]
    changed = _plan(plan, after, options, stream, found)
    bundle = _write(changed, options, after, pixels)
    warnings = [*stream.warnings(), *after.warnings]
    for line in warnings:
        logger.warning("%s", line)
    return {
        "plan": str(options.output),
        "bundle": str(bundle),
        "observer": options.observer,
        "images": found.images,
        "layers": _layers(before, after, found),
        "warnings": warnings,
        "observer_bytes": found.state_bytes,
        "peak_memory_bytes": peak,
    }


def _check(plan: Plan, options: RecalibrateOptions) -> None:
    baseline = plan.provenance.get("baseline")
    if not plan.linears:
        raise BundleError(
            f"the plan in {options.plan} quantizes nothing; export it with a baseline"
        )
    if baseline != "naive" or plan.matmuls:
        what = "INT8 attention" if plan.matmuls else f"baseline '{baseline}'"
        raise ConfigError(
            f"the plan in {options.plan} has {what}, whose ranges a stream cannot set; "
            "export with --baseline naive and a CPU target"
        )
    if options.output.resolve() == options.plan.resolve():
        raise ConfigError("--output is the plan's own folder; choose another one")


def _plan(
    plan: Plan,
    calibration: Calibration,
    options: RecalibrateOptions,
    stream: ImageStream,
    found: StreamedLimits,
) -> Plan:
    head = None if plan.text_features is None else torch.from_numpy(plan.text_features.copy())
    measured = {"observer": options.observer, "images": found.images, "data": stream.source}
    return make_plan(
        calibration,
        regcache_config=plan.regcache,
        preprocess=plan.preprocess,
        text_features=head,
        labels=plan.labels,
        logit_scale=plan.logit_scale,
        provenance={**plan.provenance, "recalibrated": measured},
    )


def _write(
    plan: Plan, options: RecalibrateOptions, calibration: Calibration, pixels: Tensor
) -> Path:
    graph = graph_options_of(plan)
    plan.save(options.output)
    draft = write_bundle(plan, options.output / "calibrated.unverified", options=graph)
    try:
        certify_bundle(draft, plan, graph, calibration, pixels)
        return seal_bundle(draft, options.output / "calibrated.regcache")
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def graph_options_of(plan: Plan) -> GraphOptions:
    """How the plan's own bundle was written; the defaults where the plan does not say."""
    stored = plan.provenance.get("options")
    if not isinstance(stored, dict):
        return GraphOptions()
    known = {f.name for f in fields(ExportOptions)} - {"data", "eval_data", "output"}
    return ExportOptions(**{name: stored[name] for name in known & stored.keys()}).graph


def _layers(
    before: Calibration, after: Calibration, found: StreamedLimits
) -> dict[str, dict[str, float]]:
    layers = {}
    for name, layer in after.quantization.linears.items():
        old = before.quantization.linears[name].input
        scales = [float(q.scale) for q in (old, layer.input)]  # type: ignore[attr-defined]
        share = found.limits[name] / found.largest[name] if found.largest[name] else 1.0
        layers[name] = {"before": scales[0], "after": scales[1], "kept_of_largest": share}
    return layers
