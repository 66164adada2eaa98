"""Build a TensorRT or TensorRT-RTX engine from a bundle, and see that it kept INT8."""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..compat import require
from ..paths import require_writable
from ..progress import Reporter
from .check import model_path
from .common import QUIET, add_common_arguments

if TYPE_CHECKING:
    from regcache_engines.tensorrt.builder import BuildResult

HELP = "build a TensorRT or TensorRT-RTX engine from a bundle"

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `regcache build`."""
    parser.add_argument(
        "bundle", type=Path, metavar="BUNDLE", help="exported with --target tensorrt"
    )
    parser.add_argument(
        "--engine",
        choices=("tensorrt", "tensorrt_rtx"),
        default="tensorrt",
        help="runtime (default %(default)s); tensorrt_rtx also builds without a GPU",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("engines"), metavar="DIR", help="folder of the engine"
    )
    batch = parser.add_argument_group("batch profile")
    batch.add_argument("--min-batch", type=int, default=1, metavar="N", help="default %(default)s")
    batch.add_argument("--opt-batch", type=int, default=8, metavar="N", help="tuned for this one")
    batch.add_argument("--max-batch", type=int, default=32, metavar="N", help="default %(default)s")
    build = parser.add_argument_group("build")
    build.add_argument("--workspace", type=int, metavar="MIB", help="scratch memory for kernels")
    build.add_argument(
        "--optimization-level", type=int, metavar="0-5", help="effort of the builder"
    )
    build.add_argument("--timing-cache", type=Path, metavar="FILE", help="kernel timings to keep")
    build.add_argument(
        "--version-compatible", action="store_true", help="newer TensorRT may load the engine"
    )
    build.add_argument(
        "--hardware",
        choices=("none", "ampere_plus", "same_compute_capability"),
        default="none",
        help="GPUs that the engine of full TensorRT runs on",
    )
    build.add_argument("--strip-weights", action="store_true", help="leave out refittable weights")
    build.add_argument(
        "--sm",
        type=int,
        action="append",
        default=[],
        metavar="NN",
        help="GPU to build for, e.g. 89; may be repeated (tensorrt_rtx)",
    )
    build.add_argument(
        "--layer-check",
        choices=("error", "warn"),
        default="error",
        help="what a layer that did not become INT8 as promised is (default %(default)s)",
    )
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Check, build, compare. Returns the exit code."""
    require("onnx", "export")
    from regcache_engines.tensorrt.builder import BuildOptions, EngineBuilder
    from regcache_engines.tensorrt.sidecar import Profile
    from regcache_export.checks import check_file

    require_writable(args.output)
    model = model_path(args.bundle)
    options = BuildOptions(
        profile=Profile(args.min_batch, args.opt_batch, args.max_batch),
        workspace_mib=args.workspace,
        optimization_level=args.optimization_level,
        version_compatible=args.version_compatible,
        hardware=args.hardware,
        strip_weights=args.strip_weights,
        sms=tuple(args.sm),
        timing_cache=args.timing_cache,
    )
    builder = EngineBuilder(args.engine)
    report = check_file(model)
    report.require_ok()
    reporter = Reporter(quiet=args.verbosity == QUIET or args.json)
    with reporter.stage(f"build with {args.engine} {builder.probe.version}") as advance:
        result = builder.build(
            model.read_bytes(),
            args.output,
            options,
            promise=report.promise,
            strict=args.layer_check == "error",
            on_progress=lambda phase, done, steps: advance(1),
        )
    broken = result.sidecar.broken_promises
    for node, found in broken.items():
        log.warning("%s did not become what the check promised; it is in: %s", node, found)
    if args.json:
        print(json.dumps(_document(result), indent=1))
    else:
        kinds = ", ".join(f"{count} {kind}" for kind, count in result.sidecar.layers.items())
        print(f"{'found' if result.reused else 'built'} {result.path}\nlayers: {kinds}")
    return 0


def _document(result: BuildResult) -> dict[str, Any]:
    return {
        "path": str(result.path),
        "reused": result.reused,
        "promise_kept": not result.sidecar.broken_promises,
    } | asdict(result.sidecar)
