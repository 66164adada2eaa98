"""ONNX Runtime, imported only when an engine is made."""

from __future__ import annotations

import importlib
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from .engine import Array, FloatArray, check_features, check_images, read_contract
from .errors import EngineError
from .loaded import Contract, LoadedEngine, check_threads, in_fixed_batches, require_open
from .pieces import PiecewiseRun, Run, physical_cores, piece_size

TOKENS = "regcache.tokens"
"""Where an exported graph says how many tokens an image has."""

TARGET, QUANTIZED = "regcache.target", "regcache.quantized_linears"
"""Where it says which target it was exported for, and how many linears are integer products."""

CPU_TARGET = "onnxruntime"
"""The target whose integer products no GPU has kernels for."""

CPU_PROVIDER = "CPUExecutionProvider"

DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")
"""Distributions that install the same `onnxruntime` module over one another."""


class OnnxRuntimeEngine(LoadedEngine):
    """A model in an ONNX Runtime session.

    On the CPU, batches of a graph that says how many tokens it has run in pieces (`pieces.py`).

    Args:
        model_path: `.onnx` file with one input `[batch, 3, H, W]`, or uint8 `[batch, H, W, 3]`, and
            one output `[batch, E]`.
        threads: threads inside an operator; None takes one per physical core.
        optimize: False runs the graph as written, node by node, for verification.
        provider: execution provider that must really run.

    Raises:
        EngineError: onnxruntime is missing, the provider does not run here, or the model does not
            load, is for the CPU alone, or has other inputs and outputs.
    """

    def __init__(
        self,
        model_path: Path | str,
        threads: int | None = None,
        optimize: bool = True,
        provider: str = CPU_PROVIDER,
    ) -> None:
        check_threads(threads)
        path = Path(model_path)
        if not path.is_file():
            raise EngineError(f"no model at {path}; give a bundle folder or an .onnx file")
        onnxruntime = import_onnxruntime()
        options = _session_options(onnxruntime, threads)
        if not optimize:
            levels = onnxruntime.GraphOptimizationLevel
            options.graph_optimization_level = levels.ORT_DISABLE_ALL
        self._path = path
        self._session: Any = self._create_session(onnxruntime, path, options, provider)
        if provider != CPU_PROVIDER:
            self._refuse_cpu_graph(provider)
        self._contract = self._read_contract()
        self._pieces: PiecewiseRun | None = None
        if optimize and provider == CPU_PROVIDER and self._fixed_batch is None:
            self._pieces = self._open_pieces(onnxruntime, threads)

    def infer(self, images: Array) -> FloatArray:
        """See `Engine.infer`."""
        require_open(self._session)
        check_images(images, self.image_size, self.pixels)
        if self._pieces is not None:
            features = self._pieces(images)
        else:
            features = in_fixed_batches(images, self._fixed_batch, self._run)
        return check_features(features, len(images), self.output_dim)

    def _open_pieces(self, onnxruntime: Any, threads: int | None) -> PiecewiseRun | None:
        tokens = self._metadata(TOKENS)
        if not _is_count(tokens):
            return None

        def open_single() -> Run:
            alone = _session_options(onnxruntime, 1)
            session = self._create_session(onnxruntime, self._path, alone, CPU_PROVIDER)
            return lambda images: self._run_in(session, images)

        return PiecewiseRun(
            piece_size(int(tokens)), threads or physical_cores(), self._run, open_single
        )

    def _metadata(self, key: str) -> str:
        known: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        return known.get(key, "")

    def _refuse_cpu_graph(self, provider: str) -> None:
        """ONNX Runtime would run such a graph's integer products on the CPU without a word."""
        if self._metadata(TARGET) != CPU_TARGET or self._metadata(QUANTIZED) == "0":
            return
        better = "onnx" if provider == "CUDAExecutionProvider" else "tensorrt"
        raise EngineError(
            f"{self._path} was exported with --target {CPU_TARGET}, and {provider} leaves its "
            f"integer products to the CPU; export it with --target {better}"
        )

    def _run(self, images: Array) -> FloatArray:
        return self._run_in(self._session, images)

    def _run_in(self, session: Any, images: Array) -> FloatArray:
        feed = {self._input_name: np.ascontiguousarray(images)}
        try:
            features: FloatArray = session.run([self._output_name], feed)[0]
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise EngineError(f"ONNX Runtime failed on {self._path}: {error}") from error
        return features

    def close(self) -> None:
        """See `Engine.close`."""
        self._session = None
        if self._pieces is not None:
            self._pieces.close()

    def _create_session(self, onnxruntime: Any, path: Path, options: Any, provider: str) -> Any:
        return _create_session(onnxruntime, path, options, provider)

    def _read_contract(self) -> Contract:
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        # behind the features may follow the integer codes of the outlier monitor's probes
        codes = ("tensor(uint8)", "tensor(int8)")
        outputs = [output for output in outputs if output.type not in codes]
        shapes = [value.shape for value in (*inputs, *outputs)]
        contract = None
        if len(inputs) == len(outputs) == 1 and outputs[0].type == "tensor(float)":
            dtype = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}.get(inputs[0].type, "")
            contract = read_contract(dtype, *shapes)
        if contract is None:
            raise EngineError(
                f"{self._path} has inputs and outputs {shapes}; an image encoder has one float32 "
                "input [batch, 3, H, W], or uint8 also [batch, H, W, 3], and one float32 output "
                "[batch, E]"
            )
        self._input_name, self._output_name = inputs[0].name, outputs[0].name
        batch = inputs[0].shape[0]
        self._fixed_batch = batch if isinstance(batch, int) else None
        return contract


def import_onnxruntime() -> Any:
    """Import onnxruntime, warning where two distributions of it overwrite one another.

    Raises:
        EngineError: it is not installed, or its binary does not load.
    """
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
            metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        found.append(name)
    return found


def _session_options(onnxruntime: Any, threads: int | None) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # between two calls the threads sleep: spinning, they take the cores from every other session of
    # the process (benchmarks/spinning.py)
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) > 0


def _create_session(onnxruntime: Any, path: Path, options: Any, provider: str) -> Any:
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise EngineError(
            f"this ONNX Runtime has no {provider}; it has {', '.join(available)}. "
            "For CUDA, install the extra 'gpu' in place of 'cpu'"
        )
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        hint = "If the file is damaged, export it again"
        if any(word in str(error).lower() for word in ("opset", "ir version")):
            version = getattr(onnxruntime, "__version__", "")
            hint = f"ONNX Runtime {version} is older than the file: upgrade it"
        raise EngineError(f"ONNX Runtime cannot load {path}: {error}. {hint}") from error
    # a provider whose libraries do not load is listed as available, and replaced by the CPU
    running = session.get_providers()
    if running[0] != provider:
        raise EngineError(
            f"{provider} was asked for, but ONNX Runtime fell back to {running[0]}; its CUDA or "
            "TensorRT libraries do not load (run: regcache doctor)"
        )
    return session
