"""Measure candidates in their order, decide, and write the file that is kept."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from regcache_engines.bundle import MODEL, Bundle
from regcache_engines.files import atomic_write_bytes
from regcache_engines.tensorrt.probe import probe
from regcache_export.bundle_graph import graph_options
from regcache_export.targets import find_target

from ..bench.environment import busy_warning, describe_machine, read_gpu
from ..errors import BundleError
from ..evaluation.engines import engine_version
from ..work.progress import Reporter
from ..work.threads import settle_threads
from .candidates import Candidates
from .data import load_judge_data
from .decide import decide
from .kept_bundle import write_kept
from .measure import Measurement
from .options import ContractOptions
from .tensorrt import ENGINES, Builds, runs_here

METRICS = {
    "top1": "top-1",
    "instances": "copy detection: images that find their own altered copy (no zero-shot head)",
    "changed": "images whose class changed (no labels: an upper bound of the loss of top-1)",
    "cosine": "mean cosine of the features (random weights, no zero-shot head)",
}


def run_contract(path: Path, options: ContractOptions, reporter: Reporter) -> dict[str, Any]:
    """Decide which file of a bundle to deploy.

    Returns:
        The decision as JSON: what was kept and where it is, and every figure.

    Raises:
        BundleError: damaged, a float bundle, without its plan, or of another target.
        ConfigError, DataError: no images to judge on; options that cannot be judged.
        EngineError: the engine is missing, has no GPU, or fails; for TensorRT before anything else.
    """
    gpu = next((runs_here(name) for name in ENGINES if name == options.engine), None)
    bundle = Bundle.open(path)
    if not bundle.manifest.get("quantized_linears"):
        raise BundleError(f"{path} has no quantized linear: there is nothing to decide")
    if gpu is None and find_target(graph_options(bundle).target).form == "tensorrt":
        raise BundleError(
            f"{path} was exported for TensorRT, and its float file would be a float16 one; for "
            f"{options.engine} export with --target onnx or onnxruntime"
        )
    settle_threads(options.threads)
    machine = describe_machine()
    with tempfile.TemporaryDirectory(prefix="regcache-build-") as scratch:
        builds = None
        if gpu is not None:
            builds = Builds.of(bundle, options, gpu, Path(scratch) / "engines", reporter)
        candidates = Candidates.of(bundle, options.plan_folder, Path(scratch), reporter)
        with reporter.stage("reading the images to judge by"):
            data = load_judge_data(bundle, options.data, options.limit, options.seed)
        measurement = Measurement(candidates, data, options, builds)
        attempts = [
            measurement.try_int8,
            measurement.try_mixed,
            measurement.try_way,
            measurement.try_plain_mixed,
            measurement.try_float,
        ]
        if candidates.plan.merge is not None:
            attempts.insert(1, measurement.try_unmerged)
        decision = decide(attempts, options.contract)
        gpu_after = read_gpu()[0]
        options.output.mkdir(parents=True, exist_ok=True)
        place = write_kept(candidates, decision.kept, options.output, data.place)
        engine = None
        if builds is not None:
            engine = builds.keep(candidates.file_of(decision.kept), place, options.output)
    document = decision.to_json() | {
        "path": str(place),
        "bundle": str(path),
        "model_sha256": bundle.manifest["files"][MODEL]["sha256"],
        "drop_measured_on": data.source,
        "drop_metric": METRICS[decision.kept.drop.metric],
        "images": {"judged_on": len(data.judge), "chosen_on": measurement.selected},
        "interval": "95 % bootstrap over paired images, at least as wide as the exact bounds of "
        "images lost and won, and over paired rounds for speed",
        "speed_measured_at": {
            "engine": f"{options.engine} {version_of(options.engine)}",
            "batch": candidates.options.batch or options.batch,
            "threads": options.threads or "default",
            "control": vars(measurement.control) if measurement.control else None,
        },
        "float_body": "float16" if builds else "float32",
        "environment": machine,
        "environment_after": {"gpu": gpu_after},
        "warning": busy_warning(machine["load"], machine["cores"]),
        "caution": (bundle.manifest.get("provenance") or {}).get("caution"),
    }
    if builds is not None and gpu is not None:
        document["speed_measured_at"] |= {"gpu": gpu.name, "profile": vars(builds.options.profile)}
        document |= {
            "engine_file": str(engine),
            "engine_host_code": builds.options.version_compatible,
            "engines": builds.to_json(),
        }
    name = path.resolve().name.removesuffix(".regcache")
    atomic_write_bytes(
        options.output / f"{name}.decision.json", (json.dumps(document, indent=1) + "\n").encode()
    )
    return document


def version_of(engine: str) -> str:
    """Of the runtime that ran: TensorRT may come without a distribution's metadata (JetPack)."""
    found = next((probe(name).version for name in ENGINES if name == engine), None)
    return found or engine_version(engine)
