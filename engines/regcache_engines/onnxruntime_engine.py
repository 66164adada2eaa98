"""ONNX Runtime, imported only when an engine is made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .cpu_flags import may_saturate
from .engine import Array, FloatArray, read_contract
from .engine_base import BaseEngine, Contract, check_threads, in_fixed_batches
from .errors import EngineError
from .heap import trim_heap
from .mapped_model import mapped_model
from .model_file import ModelFile
from .monitor import Monitor
from .onnxruntime_session import CPU_PROVIDER, open_session
from .pieces import PiecewiseRun, Run, physical_cores, piece_size

TOKENS = "regcache.tokens"
"""Where an exported graph says how many tokens an image has."""

TARGET, QUANTIZED = "regcache.target", "regcache.quantized_linears"
"""Where it says which target it was exported for, and how many linears are integer products."""

CPU_TARGET = "onnxruntime"
"""The target whose integer products no GPU has kernels for."""


class OnnxRuntimeEngine(BaseEngine):
    """A model in an ONNX Runtime session.

    On the CPU, batches of a graph that says how many tokens it has run in pieces (`pieces.py`).

    Args:
        model_path: `.onnx` file with one input `[batch, 3, H, W]`, or uint8 `[batch, H, W, 3]`, and
            one output `[batch, E]`.
        threads: threads inside an operator; None takes one per physical core.
        optimize: False runs the graph as written, node by node, for verification.
        provider: execution provider that must really run.
        sha256: of the file, where a manifest says it; anything else is refused.
        provider_options: as ONNX Runtime names them; `providers.tensorrt_options` makes some.
        monitor: gets the integer codes of its probes with every call; None takes none out.
        pieces: a second copy of the model, with which each thread runs images of its own
            (`pieces.py`). None loads it with the first batch of at least one image a thread, True
            at once, False never: batches then take longer, and memory holds the model once.
        mmap_folder: where the optimized model is kept and mapped into memory from
            (`mapped_model.py`); on the CPU, with optimizations.

    Raises:
        EngineError: onnxruntime is missing, the provider does not run here, or the model does not
            load, is for the CPU alone, has other inputs and outputs, or would saturate without
            optimizations.
    """

    def __init__(
        self,
        model_path: Path | str,
        threads: int | None = None,
        optimize: bool = True,
        provider: str = CPU_PROVIDER,
        sha256: str | None = None,
        provider_options: Mapping[str, str] | None = None,
        monitor: Monitor | None = None,
        pieces: bool | None = None,
        mmap_folder: Path | None = None,
    ) -> None:
        check_threads(threads)
        if mmap_folder is not None and not (optimize and provider == CPU_PROVIDER):
            raise EngineError("mmap_folder holds what was optimized for the CPU; leave it out here")
        super().__init__()
        self._monitor = monitor
        self._path = Path(model_path)
        self._file = ModelFile(model_path, sha256)
        self._provider_options, self._mmap_folder = provider_options, mmap_folder
        self._session: Any = self._open_session(threads, optimize, provider)
        if provider != CPU_PROVIDER:
            self._refuse_cpu_graph(provider)
        if not optimize and provider == CPU_PROVIDER:
            self._refuse_saturation()
        self._contract = self._read_contract()
        self._pieces: PiecewiseRun | None = None
        if optimize and provider == CPU_PROVIDER and self._fixed_batch is None:
            self._pieces = self._open_pieces(threads, pieces is not False)
            if self._pieces is not None and pieces:
                self._pieces.open()

    def _features(self, images: Array) -> FloatArray:
        if self._pieces is not None:
            return self._pieces(images)
        left = len(images)

        def run(part: Array) -> FloatArray:  # the last one may be filled up
            nonlocal left
            own, left = min(left, len(part)), left - len(part)
            return self._run_in(self._session, part, own)

        return in_fixed_batches(images, self._fixed_batch, run)

    def _open_pieces(self, threads: int | None, twice: bool) -> PiecewiseRun | None:
        tokens = self._metadata(TOKENS)
        if not _is_count(tokens):
            return None

        def open_single() -> Run:
            session = self._open_session(1, True, CPU_PROVIDER)
            return lambda images: self._run_in(session, images)

        return PiecewiseRun(
            piece_size(int(tokens)),
            threads or physical_cores(),
            self._run,
            open_single if twice else None,
        )

    def _metadata(self, key: str) -> str:
        known: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        return known.get(key, "")

    def _refuse_cpu_graph(self, provider: str) -> None:
        """ONNX Runtime would run such a graph's integer products on the CPU without a word."""
        if not self._has_integer_products():
            return
        better = "onnx" if provider == "CUDAExecutionProvider" else "tensorrt"
        raise EngineError(
            f"{self._path} was exported with --target {CPU_TARGET}, and {provider} leaves its "
            f"integer products to the CPU; export it with --target {better}"
        )

    def _refuse_saturation(self) -> None:
        """As written, such a graph's products saturate; ONNX Runtime mends it by optimizing."""
        if self._has_integer_products() and may_saturate():
            raise EngineError(
                f"{self._path} was exported with --target {CPU_TARGET}, and without optimizations "
                "its integer products saturate on this CPU, which has no VNNI instructions; load "
                "it with optimizations, which keep them exact here"
            )

    def _has_integer_products(self) -> bool:
        return self._metadata(TARGET) == CPU_TARGET and self._metadata(QUANTIZED) != "0"

    def _run(self, images: Array) -> FloatArray:
        return self._run_in(self._session, images)

    def _run_in(self, session: Any, images: Array, own: int | None = None) -> FloatArray:
        """Features of `images`, of which the first `own` are the caller's; None means all."""
        feed = {self._input_name: np.ascontiguousarray(images)}
        watched = [] if self._monitor is None else self._monitor.outputs
        features: FloatArray
        try:
            features, *codes = session.run([self._output_name, *watched], feed)
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise EngineError(f"ONNX Runtime failed on {self._path}: {error}") from error
        if self._monitor is not None:
            own = len(images) if own is None else own
            parts = [part[: len(part) * own // len(images)] for part in codes]
            self._monitor.add(parts, own)
        return features

    def _release(self) -> None:
        self._file.close()
        self._session = None
        if self._pieces is not None:
            self._pieces.close()

    def _open_session(self, threads: int | None, optimize: bool, provider: str) -> Any:
        folder = self._mmap_folder
        session = open_session(
            self._file.source() if folder is None else mapped_model(self._file, folder),
            threads=threads,
            optimize=optimize,
            provider=provider,
            provider_options=self._provider_options,
            name=self._path,
        )
        trim_heap()
        return session

    def _read_contract(self) -> Contract:
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        # behind the features may follow the integer codes of the outlier monitor's probes
        codes = [output for output in outputs if output.type in ("tensor(uint8)", "tensor(int8)")]
        outputs = [output for output in outputs if output not in codes]
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
        self.names = self._input_name, self._output_name = inputs[0].name, outputs[0].name
        self.codes = frozenset(output.name for output in codes)
        batch = inputs[0].shape[0]
        self._fixed_batch = batch if isinstance(batch, int) else None
        return contract


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) > 0
