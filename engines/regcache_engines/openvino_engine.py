"""OpenVINO on the CPU; imported only when an engine is made."""

from __future__ import annotations

import importlib
import queue
from pathlib import Path
from typing import Any

import numpy as np

from .container import cpu_limit
from .engine import Array, FloatArray, read_contract
from .engine_base import BaseEngine, check_threads, in_fixed_batches
from .errors import EngineError
from .model_file import ModelFile
from .pieces import physical_cores


class OpenVINOEngine(BaseEngine):
    """A model compiled by OpenVINO.

    Float parts run in float32: OpenVINO's own choice of bfloat16 is slower where there is no matrix
    unit, and another function than the one certified.

    Args:
        model_path: `.onnx` file; of the targets, `onnx` is the one that it fuses best.
        threads: inference threads; None leaves OpenVINO's own choice, outside of
            a container with a limit.
        sha256: of the file, where a manifest says it; anything else is refused.

    Raises:
        EngineError: openvino is missing, or the model does not load or is no image encoder.
    """

    def __init__(
        self, model_path: Path | str, threads: int | None = None, sha256: str | None = None
    ) -> None:
        check_threads(threads)
        path = Path(model_path)
        file = ModelFile(path, sha256)
        source = file.source()
        file.close()
        openvino = import_openvino()
        properties: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        if threads is None and cpu_limit() is not None:
            threads = physical_cores()
        if threads is not None:
            properties["INFERENCE_NUM_THREADS"] = threads
        try:
            model = openvino.Core().read_model(source)
            contract = _contract(model)
            compiled = openvino.Core().compile_model(model, "CPU", properties)
        except Exception as error:  # openvino raises RuntimeError and kinds of its own
            first = str(error).strip().splitlines()[-1]
            raise EngineError(
                f"OpenVINO cannot load {path}: {first}. If the file is whole, export it with "
                "--target onnx"
            ) from error
        if contract is None:
            raise EngineError(f"{path} is no image encoder with one input and one output")
        super().__init__()
        self._path = path
        self._contract = contract
        (self._output,) = _feature_outputs(compiled)
        self._compiled: Any = compiled
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        batch = compiled.inputs[0].partial_shape[0]
        self._fixed_batch = batch.get_length() if batch.is_static else None

    def _features(self, images: Array) -> FloatArray:
        return in_fixed_batches(images, self._fixed_batch, self._run)

    def _run(self, images: Array) -> FloatArray:
        """One call, one request: its result stays in the request until it is copied."""
        try:
            request = self._requests.get_nowait()
        except queue.Empty:
            request = self._compiled.create_infer_request()
        try:
            request.infer([np.ascontiguousarray(images)])
            features: FloatArray = np.array(request.get_output_tensor(self._output).data)
        except Exception as error:  # as above
            raise EngineError(f"OpenVINO failed on {self._path}: {error}") from error
        self._requests.put(request)
        return features

    def _release(self) -> None:
        self._requests = queue.SimpleQueue()
        self._compiled = None


def import_openvino() -> Any:
    """Import openvino.

    Raises:
        EngineError: it is not installed, or its binary does not load.
    """
    try:
        module = importlib.import_module("openvino")
        module.Core  # noqa: B018  (a half-removed package imports as an empty namespace)
    except (ImportError, AttributeError) as error:
        raise EngineError(
            "this needs openvino, which is not installed or does not load "
            f"({error}); run: pip install 'regcache-deploy[openvino]'"
        ) from error
    return module


def _feature_outputs(model: Any) -> list[int]:
    """Indices of the outputs, without the integer codes of the outlier monitor's probes."""
    codes = ("u8", "i8")
    types = [output.get_element_type().get_type_name() for output in model.outputs]
    return [index for index, name in enumerate(types) if name not in codes]


def _contract(model: Any) -> tuple[tuple[int, int], int, str | None] | None:
    features = _feature_outputs(model)
    if len(model.inputs) != 1 or len(features) != 1:
        return None
    shapes = [
        [size.get_length() if size.is_static else None for size in value.get_partial_shape()]
        for value in (model.inputs[0], model.outputs[features[0]])
    ]
    name = model.inputs[0].get_element_type().get_type_name()
    return read_contract({"f32": "float32", "u8": "uint8"}.get(name, ""), *shapes)
