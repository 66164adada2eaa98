"""Where every ONNX Runtime session is made: one import, one set of options, one kind of error.

What is compared, certified, measured and deployed must compute alike, so no other place sets
options of a session.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from .container import cpu_limit
from .cpu_flags import may_saturate
from .errors import EngineError
from .pieces import physical_cores

CPU_PROVIDER = "CPUExecutionProvider"

NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"
"""Variable of the environment; ONNX Runtime reads it when it loads."""

DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")
"""Distributions that install the same `onnxruntime` module over one another."""

SLEEP_BETWEEN_CALLS = "session.force_spinning_stop"
"""Spinning, the threads take the cores from every other session of the process
(benchmarks/spinning.py)."""

YES, NO = "True", "False"
"""Of a provider's options; ONNX Runtime's Python takes no 1 and 0 for them, as its C does."""

PROVIDER_OPTIONS = {"TensorrtExecutionProvider": {"trt_int8_enable": YES}}
"""Without it TensorRT refuses a Q/DQ graph, or runs it in float."""

BEHIND = {"TensorrtExecutionProvider": ("CUDAExecutionProvider",)}
"""What takes the nodes that a provider leaves; after these, the CPU."""

BESIDE = "session.model_external_initializers_file_folder_path"
NOWHERE = "/nonexistent/weights of a graph in memory lie inside of it"
"""A graph in memory would else take weights from files of the working folder, which no hash
covers."""

OWN_FORMAT = ".ort"
"""A suffix by which ONNX Runtime knows its own format, where it reads and where it writes."""

MAPPED = (
    "session.use_memory_mapped_ort_model",
    "session.use_ort_model_bytes_directly",
    "session.use_ort_model_bytes_for_initializers",
    "session.disable_prepacking",
)
"""Repacked for the kernels, every weight would be in memory of its own."""

CPU_LAYOUTS = "NchwcTransformer"
"""It lays the weights of convolutions out in blocks as long as this CPU's vectors, and a CPU with
others reads them in its own length: other features, without a word."""

EXACT_PRODUCTS = "session.x64quantprecision"
"""Optimized graphs then multiply u8 by u8: exact where u8s8 products saturate, and the same bits
but 1.45 times the CPU time where they do not (demo, AMD EPYC with VNNI). A graph as written, not
optimized, keeps its products."""


def open_session(
    model: Path | bytes,
    *,
    threads: int | None = None,
    optimize: bool = True,
    optimized_model: Path | None = None,
    provider: str = CPU_PROVIDER,
    devices: Sequence[Any] = (),
    provider_options: Mapping[str, str] | None = None,
    name: Path | str = "the graph in memory",
) -> Any:
    """A session that really runs on the provider that was asked for.

    Args:
        model: an `.onnx` file, or its bytes; an `.ort` file is mapped into memory.
        threads: threads inside an operator; None takes one per physical core.
        optimize: False runs the graph as written, node by node.
        optimized_model: where to write the graph after the optimizations, without `CPU_LAYOUTS`.
        provider: execution provider.
        devices: those of a plug-in provider (`get_ep_devices`), which is not asked for by name.
        provider_options: of `provider`, beside those of `PROVIDER_OPTIONS`.
        name: of bytes, for messages.

    Raises:
        EngineError: onnxruntime is missing, the provider does not run here, or the model does not
            load.
    """
    onnxruntime = import_onnxruntime()
    options = _session_options(onnxruntime, threads, optimize, optimized_model)
    if isinstance(model, bytes):
        options.add_session_config_entry(BESIDE, NOWHERE)
    elif model.suffix == OWN_FORMAT:
        for entry in MAPPED:
            options.add_session_config_entry(entry, "1")
    # else a provider that fails, now or in a later run, is replaced by another one
    keywords: dict[str, Any] = {"enable_fallback": 0}
    if optimized_model is not None:
        keywords["disabled_optimizers"] = [CPU_LAYOUTS]
    if devices:
        options.add_provider_for_devices(list(devices), {})
    else:
        available = onnxruntime.get_available_providers()
        if provider not in available:
            raise EngineError(
                f"this ONNX Runtime has no {provider}; it has {', '.join(available)}. "
                "For CUDA, install the extra 'gpu' in place of 'cpu'"
            )
        keywords["providers"] = _providers(provider, provider_options or {}, available)
    source, name = (model, name) if isinstance(model, bytes) else (str(model), model)
    try:
        session = onnxruntime.InferenceSession(source, options, **keywords)
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise EngineError(_load_message(onnxruntime, name, provider, error)) from error
    session._model_bytes = None  # kept for the fallback, which is off: a second file in memory
    # a provider whose libraries do not load is listed as available, and replaced by the CPU
    running = session.get_providers()
    if running[0] != provider:
        raise EngineError(
            f"{provider} was asked for, but ONNX Runtime fell back to {running[0]}; its CUDA or "
            "TensorRT libraries do not load (run: regcache doctor)"
        )
    return session


def _providers(
    provider: str, options: Mapping[str, str], available: Sequence[str]
) -> list[str | tuple[str, dict[str, str]]]:
    own = {**PROVIDER_OPTIONS.get(provider, {}), **options}
    device = {key: value for key, value in options.items() if key == "device_id"}
    found: list[str | tuple[str, dict[str, str]]] = [(provider, own) if own else provider]
    for other in BEHIND.get(provider, ()):
        if other in available:
            found.append((other, device) if device else other)
    return found


def import_onnxruntime() -> Any:
    """Import onnxruntime, warning where two distributions of it overwrite one another.

    Its releases for Linux send usage data to Microsoft, and keep an identifier of the user's in
    the cache folder, unless `ORT_DISABLE_TELEMETRY` is 1 in the environment before they load. So it
    is set here, unless the caller has set it to anything.

    Raises:
        EngineError: it is not installed, or its binary does not load.
    """
    os.environ.setdefault(NO_TELEMETRY, "1")
    try:
        module = importlib.import_module("onnxruntime")
        module.InferenceSession  # noqa: B018  (a half-removed package imports as an empty namespace)
    except (ImportError, AttributeError) as error:
        raise EngineError(
            "this needs onnxruntime, which is not installed or does not load "
            f"({error}); run: pip install 'regcache-deploy[cpu]'"
        ) from error
    installed = installed_distributions()
    if len(installed) > 1:
        warnings.warn(
            f"{' and '.join(installed)} are both installed and overwrite each other's files; "
            "which one runs depends on the order of installation. Uninstall both, then install "
            "one",
            stacklevel=2,
        )
    return module


def installed_distributions() -> list[str]:
    """Which of the distributions that own the `onnxruntime` module are installed."""
    found = []
    for name in DISTRIBUTIONS:
        try:
            metadata.distribution(name)  # unread: it opens no file, which may be one too many
        except metadata.PackageNotFoundError:
            continue
        found.append(name)
    return found


def _session_options(
    onnxruntime: Any, threads: int | None, optimize: bool, optimized_model: Path | None
) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns that an optimized graph is tied to this machine
    options.add_session_config_entry(SLEEP_BETWEEN_CALLS, "1")
    if may_saturate():
        options.add_session_config_entry(EXACT_PRODUCTS, "1")
    if threads is None and cpu_limit() is not None:
        threads = physical_cores()  # ONNX Runtime counts the machine's
    if threads is not None:
        options.intra_op_num_threads = threads
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimized_model is not None:
        options.optimized_model_filepath = str(optimized_model)
    return options


def _load_message(onnxruntime: Any, name: Path | str, provider: str, error: Exception) -> str:
    runtime = "ONNX Runtime" if provider == CPU_PROVIDER else f"ONNX Runtime's {provider}"
    hint = "If the file is damaged, export it again"
    if provider != CPU_PROVIDER:
        hint = "What is missing of its libraries: regcache doctor"
    if any(word in str(error).lower() for word in ("opset", "ir version")):
        version = getattr(onnxruntime, "__version__", "")
        hint = f"ONNX Runtime {version} is older than the file: upgrade it"
    return f"{runtime} cannot load {name}: {error}. {hint}"
