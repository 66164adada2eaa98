"""From a plan to a verified bundle on disk."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from regcache_engines.load import load_engine
from regcache_export.bundle import seal_bundle, write_bundle
from regcache_export.plan import Plan
from regcache_export.targets import GraphOptions

from ..errors import VerificationError
from ..evaluation.deployed import Agreement, compare_features, float64_control, run_engine
from ..evaluation.image_sets import ImageSets
from ..quantization.simulate import Calibration
from ..work.progress import Reporter
from .certify import certify_bundle
from .monitor import monitor_entry

CONTROL_BATCH, CONTROL_BATCHES = 32, 8
"""Evaluation images that the float64 control runs on, where it is needed."""


@dataclass(frozen=True)
class BundleWriter:
    """Writes one bundle: draft, deployed check, certificate, seal.

    Attributes:
        path: of the sealed bundle; the plan goes beside it.
        graph: how the graph is written.
        certificate_images: of the search images; they travel in the bundle.
        batch_size: images per call, where the graph takes any number.
        threads: of ONNX Runtime; None is its own choice.
    """

    path: Path
    graph: GraphOptions
    certificate_images: int
    batch_size: int
    threads: int | None

    def draft(self, plan: Plan) -> Path:
        """Write the bundle; it keeps the suffix `.unverified` until it is sealed."""
        draft = self.path.with_suffix(".unverified")
        return write_bundle(plan, draft, options=self.graph)

    def run(self, bundle: Path, sets: ImageSets, reporter: Reporter) -> Tensor:
        """Embeddings `[n, E]` of the evaluation images from a bundle in ONNX Runtime."""
        batches = -(-len(sets.evaluation) // self.batch_size)
        with (
            reporter.stage("evaluation of the deployed graph", batches) as advance,
            load_engine(bundle, threads=self.threads) as engine,
        ):
            size = self.graph.batch or self.batch_size
            if engine.pixels is None:
                return run_engine(engine, sets.evaluation.batches(size), advance)
            pixels = sets.evaluation.pixels
            if engine.pixels == "nchw":
                pixels = pixels.permute(0, 3, 1, 2).contiguous()
            return run_engine(engine, pixels.split(size), advance)

    def verify_and_seal(
        self,
        draft: Path,
        plan: Plan,
        calibration: Calibration,
        sets: ImageSets,
        simulated: Tensor,
        deployed: Tensor,
        manifest: dict[str, Any],
    ) -> Agreement:
        """Give the bundle its name, and its plan a place beside it, if it runs as simulated.

        Args:
            draft, plan, calibration: the bundle and what it was written from.
            sets: of the search.
            simulated, deployed: embeddings `[n, E]` of the evaluation images.
            manifest: further entries.

        Raises:
            VerificationError: it does not; the bundle is kept with the suffix `.rejected`, and
                one that has the name already keeps its plan.
        """
        agreement = compare_features(deployed, simulated, sets.head)
        if not agreement.within:
            batches = itertools.islice(sets.evaluation.batches(CONTROL_BATCH), CONTROL_BATCHES)
            control = float64_control(calibration, batches, sets.head)
            agreement = replace(agreement, control=control.mean_cosine, control_top1=control.top1)
        try:
            agreement.check()
            calibrated = sets.search.pixels[: len(sets.calibration_tokens)].numpy()
            manifest = manifest | {"agreement": agreement.to_json()}
            manifest |= monitor_entry(draft, calibrated, self.batch_size, self.threads)
            pixels = sets.search.pixels[: self.certificate_images]
            certify_bundle(draft, plan, self.graph, calibration, pixels, manifest)
        except VerificationError as error:
            rejected = self.path.with_suffix(".rejected")
            shutil.rmtree(rejected, ignore_errors=True)
            draft.rename(rejected)
            raise VerificationError(f"{error}; the bundle is kept as {rejected}") from error
        plan.save(self.path.parent)  # not earlier: it replaces that of an earlier bundle
        seal_bundle(draft, self.path, manifest)
        return agreement
