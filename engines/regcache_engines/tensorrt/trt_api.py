"""The calls into TensorRT's Python API while building, guarded by what a version has."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ..errors import EngineError
from .build_options import BuildOptions, OnProgress


def make_logger(trt: Any) -> Any:
    """A logger that keeps errors and warnings, and the verbose messages that dump layers."""
    warning = getattr(trt.ILogger, "WARNING", None)

    class Recorder(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []
            self.warnings: list[str] = []
            self.messages: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(message)
            elif severity == warning:
                if "logger passed into" not in message:  # of the one before: nothing of the build
                    self.warnings.append(message)
            elif "LayerType: " in message:
                self.messages.append(message)

        def last_error(self) -> str:
            return self.errors[-1] if self.errors else "no reason given"

    return Recorder()


def create(trt: Any, kind: str, logger: Any) -> Any:
    """A `Builder` or a `Runtime`.

    Raises:
        EngineError: TensorRT gives none: of the GPU, the driver or its own libraries something does
            not fit. The binding then has a TypeError without the reason, which the logger has.
    """
    try:
        return getattr(trt, kind)(logger)
    except TypeError as error:
        raise EngineError(f"TensorRT makes no {kind}: {logger.last_error()}") from error


def parse(trt: Any, builder: Any, logger: Any, model: bytes) -> tuple[Any, Any]:
    """A strongly typed network, and the parser that must outlive it.

    Raises:
        EngineError: the parser refuses the graph; with its first reason.
    """
    flags = 0
    creation = trt.NetworkDefinitionCreationFlag
    if hasattr(creation, "STRONGLY_TYPED"):  # the default in 11, a flag in 10
        flags |= 1 << int(creation.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        reasons = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        reason = reasons[0] if reasons else logger.last_error()
        raise EngineError(
            f"TensorRT's parser refuses the graph: {reason}. "
            "Run: regcache check BUNDLE --target tensorrt"
        )
    return network, parser


def read_contract(trt: Any, network: Any) -> dict[str, Any]:
    """Names, shapes and type of the one input and the one output.

    Raises:
        EngineError: another number of them, or shapes or types that are no image encoder's.
    """
    if network.num_inputs != 1 or network.num_outputs != 1:
        raise EngineError(
            f"the graph has {network.num_inputs} inputs and {network.num_outputs} outputs; an "
            "image encoder has one of each"
        )
    image, features = network.get_input(0), network.get_output(0)
    shape, out = tuple(image.shape), tuple(features.shape)
    if len(shape) != 4 or min(shape[1:]) < 1 or len(out) != 2 or out[1] < 1:
        raise EngineError(f"input {shape} and output {out} are no image encoder's")
    dtypes = {trt.float32: "float32", trt.uint8: "uint8"}
    if image.dtype not in dtypes or features.dtype != trt.float32:
        raise EngineError(
            f"input is {image.dtype} and output {features.dtype}; engines are fed float32 or uint8 "
            "and give float32: cast inside of the graph"
        )
    return {
        "input_name": image.name,
        "output_name": features.name,
        "image_shape": shape[1:],
        "output_dim": int(out[1]),
        "input_dtype": dtypes[image.dtype],
    }


def configure(
    trt: Any, builder: Any, network: Any, options: BuildOptions, on_progress: OnProgress | None
) -> tuple[Any, Any]:
    """A builder configuration, and the timing cache if there is one.

    Raises:
        EngineError: an option that this runtime does not have.
    """
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    _add_profile(builder, network, config, options)
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.version_compatible:
        config.set_flag(_flag(trt, "VERSION_COMPATIBLE"))
    if options.strip_weights:
        config.set_flag(_flag(trt, "STRIP_PLAN"))
    if options.hardware != "none":
        config.hardware_compatibility_level = getattr(
            trt.HardwareCompatibilityLevel, options.hardware.upper()
        )
    if options.sms:
        _set_sms(trt, config, options.sms)
    if on_progress is not None and hasattr(trt, "IProgressMonitor"):
        config.progress_monitor = make_monitor(trt, on_progress)
    return config, _timing_cache(config, options.timing_cache)


def make_monitor(trt: Any, on_progress: OnProgress) -> Any:
    """TensorRT's own progress monitor, telling `on_progress`."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            super().__init__()
            self._steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if parent is None:  # the others are hundreds, and nested
                self._steps[phase] = steps

        def step_complete(self, phase: str, step: int) -> bool:
            if phase in self._steps:
                on_progress(phase, step + 1, self._steps[phase])
            return True  # go on

        def phase_finish(self, phase: str) -> None:
            self._steps.pop(phase, None)

    return Monitor()


def _add_profile(builder: Any, network: Any, config: Any, options: BuildOptions) -> None:
    image, sizes = network.get_input(0), options.profile
    batch, rest = image.shape[0], tuple(image.shape)[1:]
    if batch > 0:
        if not sizes.min == sizes.opt == sizes.max == batch:
            raise EngineError(
                f"the graph has a fixed batch of {batch}; build with --min-batch {batch} "
                f"--opt-batch {batch} --max-batch {batch}"
            )
        return
    profile = builder.create_optimization_profile()
    shapes = [(size, *rest) for size in (sizes.min, sizes.opt, sizes.max)]
    profile.set_shape(image.name, *shapes)
    config.add_optimization_profile(profile)


def _flag(trt: Any, name: str) -> Any:
    if not hasattr(trt.BuilderFlag, name):
        raise EngineError(f"this {trt.__name__} has no {name}")
    return getattr(trt.BuilderFlag, name)


def _set_sms(trt: Any, config: Any, sms: tuple[int, ...]) -> None:
    if not hasattr(config, "set_compute_capability"):
        raise EngineError("this TensorRT builds for its own GPU only; leave --sm out")
    config.num_compute_capabilities = len(sms)
    for index, sm in enumerate(sms):
        if not hasattr(trt.ComputeCapability, f"SM{sm}"):
            known = [name for name in dir(trt.ComputeCapability) if name.startswith("SM")]
            raise EngineError(f"{trt.__name__} does not build for SM {sm}; it has {known}")
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), index)


def _timing_cache(config: Any, path: Path | None) -> Any:
    if path is None:
        return None
    try:
        known = path.read_bytes() if path.is_file() else b""
    except OSError as error:
        raise EngineError(f"cannot read the timing cache {path}: {error}") from error
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        print(f"warning: the timing cache {path} is of another version", file=sys.stderr)
        cache = config.create_timing_cache(b"")
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            return None
    return cache
