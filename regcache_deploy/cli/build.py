"""Build an engine from a bundle and see that it kept INT8, or decide which file to deploy.

Without limits, a TensorRT engine is built from the bundle as it is. With `--max-drop`,
`--min-speedup`, `--strict` or `--data`, and always with `--engine onnxruntime` or `openvino`, where
nothing has to be compiled, it is decided which file keeps both limits: INT8, INT8 with the most
sensitive linears in float, another way of the quantizer, the quantizer without RegCache and with
linears in float, or the float file, in this order.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..compat import install_advice, require
from ..errors import ConfigError
from ..work.json_file import json_text
from ..work.paths import beside, require_writable
from ..work.progress import Reporter
from ..work.settings import check_seed
from .check import read_model
from .common import QUIET, add_common_arguments, check_bundle, load_libraries

if TYPE_CHECKING:
    from regcache_engines.tensorrt.build_options import BuildOptions
    from regcache_engines.tensorrt.builder import BuildResult

HELP = "decide which file to deploy, or build a TensorRT engine"

EXAMPLES = """\
  regcache build runs/X/X.regcache --max-drop 0.5 --data DIR
  regcache build runs/X/X.regcache --engine tensorrt --max-batch 64"""

CPU_ENGINES = ("onnxruntime", "openvino")
CONTRACT = ("max_drop", "min_speedup", "strict", "data")
"""Options any of which makes a build on TensorRT a decision."""
CONTRACT_ONLY = ("limit", "plan", "batch", "threads", "seconds", "seed")
TENSORRT_ONLY = (
    "min_batch",
    "opt_batch",
    "max_batch",
    "workspace",
    "optimization_level",
    "timing_cache",
    "version_compatible",
    "hardware",
    "strip_weights",
    "sm",
    "layer_check",
)

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `regcache build`."""
    parser.add_argument(
        "bundle",
        type=Path,
        metavar="BUNDLE",
        help="exported with --target tensorrt, or for a CPU with any other",
    )
    parser.add_argument(
        "--engine",
        choices=("tensorrt", "tensorrt_rtx", *CPU_ENGINES),
        help="runtime (default: tensorrt for a bundle or file of that target, else what is "
        "installed here of onnxruntime and openvino); tensorrt_rtx also builds without a GPU",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder of the decision, of engines and of other files that are kept (default: "
        "beside the bundle, where `regcache report` finds them)",
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
    _add_contract(parser)
    add_common_arguments(parser)


def _add_contract(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("contract: which file to deploy")
    group.add_argument(
        "--max-drop",
        type=float,
        metavar="POINTS",
        help="accuracy that may be lost against the float file (default 0.5)",
    )
    group.add_argument(
        "--min-speedup", type=float, metavar="X", help="over the float file (default 1.02)"
    )
    group.add_argument(
        "--strict",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="the 95 %% intervals must keep the contract, not only the estimates",
    )
    group.add_argument(
        "--data",
        metavar="DATA",
        help="images to judge on, as in regcache eval (default: the demo's held-out digits for "
        "the demo, else the calibration images in the bundle, which have no labels)",
    )
    group.add_argument("--limit", type=int, metavar="N", help="at most N images of --data")
    group.add_argument("--plan", type=Path, metavar="DIR", help="folder of plan.json")
    group.add_argument("--batch", type=int, default=1, metavar="N", help="for speed (default 1)")
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    group.add_argument(
        "--seconds",
        type=float,
        default=20.0,
        metavar="S",
        help="for the timing of one candidate (default %(default)s)",
    )
    group.add_argument("--seed", type=int, default=0, metavar="N", help="default %(default)s")


def run(args: argparse.Namespace) -> int:
    """Check, build, compare. Returns the exit code."""
    require("onnx", "export")
    if args.output is None:
        args.output = beside(args.bundle)
    if args.engine is None:
        args.engine = engine_for(args.bundle)
        log.info("engine: %s", args.engine)
    if args.engine in CPU_ENGINES or _given(args, CONTRACT):
        return _run_contract(args)
    if ignored := _given(args, CONTRACT_ONLY):
        raise ConfigError(f"{ignored[0]} is for a decision; give --max-drop or --min-speedup, too")
    from regcache_engines.tensorrt.builder import EngineBuilder
    from regcache_export.checks import check_file

    require_writable(args.output)
    model = read_model(args.bundle)
    options = _build_options(args)
    builder = EngineBuilder(args.engine)
    report = check_file(args.bundle, model)
    report.require_ok()
    reporter = Reporter(quiet=args.verbosity == QUIET or args.json)
    with reporter.stage(f"build with {args.engine} {builder.probe.version}") as advance:
        result = builder.build(
            model,
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
        print(json_text(_document(result)))
    else:
        kinds = ", ".join(f"{count} {kind}" for kind, count in result.sidecar.layers.items())
        print(f"{'found' if result.reused else 'built'} {result.path}\nlayers: {kinds}")
    return 0


def engine_for(bundle: Path) -> str:
    """What a bundle is decided or built on, where nobody says.

    Raises:
        BundleError: a folder that is no bundle.
        ConfigError: no runtime for it is installed.
    """
    if not bundle.is_dir():
        return "tensorrt"
    from regcache_engines.bundle import Bundle
    from regcache_export.bundle_graph import graph_options
    from regcache_export.targets import find_target

    if find_target(graph_options(Bundle.open(bundle)).target).form == "tensorrt":
        return "tensorrt"
    for engine in CPU_ENGINES:
        if find_spec(engine) is not None:
            return engine
    raise ConfigError(
        f"no runtime for {bundle} is installed; run: {install_advice('cpu')} or "
        f"{install_advice('openvino')}"
    )


def _build_options(args: argparse.Namespace) -> BuildOptions:
    from regcache_engines.tensorrt.build_options import BuildOptions
    from regcache_engines.tensorrt.sidecar import Profile

    return BuildOptions(
        profile=Profile(args.min_batch, args.opt_batch, args.max_batch),
        workspace_mib=args.workspace,
        optimization_level=args.optimization_level,
        version_compatible=args.version_compatible,
        hardware=args.hardware,
        strip_weights=args.strip_weights,
        sms=tuple(args.sm),
        timing_cache=args.timing_cache,
    )


def _given(args: argparse.Namespace, names: Sequence[str]) -> list[str]:
    """Those of the options that are not at their default, as on the command line."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return [
        f"--{name.replace('_', '-')}"
        for name in names
        if getattr(args, name) != parser.get_default(name)
    ]


def _run_contract(args: argparse.Namespace) -> int:
    """Decide which file keeps the contract, write it, and say why."""
    from ..contract.decide import Contract

    limits = {"max_drop": args.max_drop, "min_speedup": args.min_speedup}
    contract = Contract(
        strict=args.strict, **{name: value for name, value in limits.items() if value is not None}
    )
    for option in ("batch", "limit", "threads"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise ConfigError(f"--{option} {value} is out of range: take at least 1")
    if not args.seconds > 0:
        raise ConfigError(f"--seconds {args.seconds:g} is out of range: take more than 0")
    check_seed(args.seed)
    build = None
    if args.engine in CPU_ENGINES:
        if ignored := _given(args, TENSORRT_ONLY):
            raise ConfigError(f"{ignored[0]} is for TensorRT; leave it out with {args.engine}")
    else:
        build = _build_options(args)
    require_writable(args.output)
    check_bundle(args.bundle)
    reporter = Reporter(quiet=args.verbosity == QUIET)
    load_libraries(reporter)
    from ..contract.options import ContractOptions
    from ..contract.run import run_contract
    from ..report.contract import print_contract

    options = ContractOptions(
        engine=args.engine,
        output=args.output,
        contract=contract,
        data=args.data,
        limit=args.limit,
        seed=args.seed,
        batch=args.batch,
        threads=args.threads,
        seconds=args.seconds,
        plan_folder=args.plan,
        build=build,
        strict_layers=args.layer_check == "error",
    )
    document = run_contract(args.bundle, options, reporter)
    if args.json:
        print(json_text(document))
    else:
        print_contract(document)
    return 0


def _document(result: BuildResult) -> dict[str, Any]:
    return {
        "path": str(result.path),
        "reused": result.reused,
        "promise_kept": not result.sidecar.broken_promises,
    } | asdict(result.sidecar)
