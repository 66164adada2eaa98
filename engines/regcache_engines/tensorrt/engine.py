"""Run a built engine: a pool of execution contexts, one CUDA graph per batch size.

Written against the documented API of TensorRT 10 and 11; in this project's tests it runs against
fakes of runtime and device, not on a GPU.
"""

from __future__ import annotations

import queue
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from ..engine import Array, FloatArray, read_contract
from ..engine_base import BaseEngine
from ..errors import EngineError
from .device import Device, open_device
from .probe import EngineName, import_runtime, probe
from .sidecar import Sidecar
from .slot import Slot
from .trt_api import create, make_logger


class TensorRTEngine(BaseEngine):
    """An engine on a GPU. With as many calls as contexts inside, others wait.

    Args:
        path: `KEY.engine`; `KEY.json` lies beside it.
        device: `cuda`, `pycuda`, `torch` or `auto`.
        device_id: which GPU; any thread may call, whichever GPU is current in it.
        contexts: how many calls of `infer` run at once.
        cuda_graphs: replay a captured graph for a batch size that was seen before.
        host_code: load an engine that was built version-compatible, which runs code of its own on
            the host. Only for one that you built: its sidecar is no signature.

    Raises:
        EngineError: no GPU, no runtime; or the engine is of another version, another GPU, or not
            the file that was built. All of that before anything is deserialized.
    """

    def __init__(
        self,
        path: Path | str,
        device: str = "auto",
        contexts: int = 1,
        cuda_graphs: bool = True,
        host_code: bool = False,
        device_id: int = 0,
    ) -> None:
        if contexts < 1:
            raise EngineError(f"contexts is {contexts}; take at least 1")
        path = Path(path)
        self._sidecar = sidecar = Sidecar.read(path.with_suffix(".json"))
        name: EngineName = "tensorrt_rtx" if sidecar.engine == "tensorrt_rtx" else "tensorrt"
        if sidecar.version_compatible and not host_code:
            raise EngineError(
                f"{path} was built to load in newer runtimes, and such an engine runs program code "
                "that it carries; pass host_code=True if you have built it yourself"
            )
        data = sidecar.read_engine(path, probe(name, device_id))
        contract = read_contract(
            sidecar.input_dtype, ("batch", *sidecar.image_shape), ("batch", sidecar.output_dim)
        )
        if contract is None:
            raise EngineError(f"{path} is no image encoder's engine: {sidecar.image_shape}")
        super().__init__()
        self._contract = contract
        self._device: Device | None = open_device(device, device_id)
        self._slots: queue.Queue[Slot] = queue.Queue()
        try:
            with self._device.current():
                self._runtime, self._engine = _deserialize(
                    import_runtime(name), path, data, host_code
                )
                for _ in range(contexts):
                    self._slots.put(Slot(self._engine, self._device, sidecar, cuda_graphs))
        except BaseException:
            self.close()
            raise

    def _features(self, images: Array) -> FloatArray:
        """Features.

        More images than the profile's largest batch run in several steps of even size: nothing is
        padded.

        Raises:
            EngineError: also for fewer images than the profile's smallest batch.
        """
        sizes = split_batch(len(images), self._sidecar.profile.min, self._sidecar.profile.max)
        slot = self._slots.get()
        try:
            parts, start = [], 0
            with slot.device.current():
                for size in sizes:
                    parts.append(slot.run(np.ascontiguousarray(images[start : start + size])))
                    start += size
        finally:
            self._slots.put(slot)
        return np.concatenate(parts)

    def _release(self) -> None:
        """Contexts go before the engine, the engine before the runtime."""
        device, self._device = self._device, None
        with nullcontext() if device is None else device.current():
            while not self._slots.empty():
                self._slots.get().close()
            self._engine = self._runtime = None
            if device is not None:
                device.release()


def split_batch(count: int, smallest: int, largest: int) -> list[int]:
    """Sizes in `[smallest, largest]` that add up to `count`, as few and as even as possible.

    Raises:
        EngineError: there are none.
    """
    steps = -(-count // largest)
    least, more = divmod(count, steps)
    if least < smallest:
        raise EngineError(
            f"{count} images do not fit the engine's batch profile {smallest} to {largest}; "
            "build it with a smaller --min-batch"
        )
    return [least + 1] * more + [least] * (steps - more)


def _deserialize(trt: Any, path: Path, data: bytes, host_code: bool) -> tuple[Any, Any]:
    logger = make_logger(trt)
    runtime = create(trt, "Runtime", logger)
    if hasattr(runtime, "get_engine_validity"):  # TensorRT-RTX
        validity, diagnostics = runtime.get_engine_validity(data)
        if validity == trt.EngineValidity.INVALID:
            raise EngineError(
                f"{path} does not run on this GPU (diagnostics {diagnostics}): "
                f"{logger.last_error()}"
            )
    if host_code:
        runtime.engine_host_code_allowed = True  # a lean runtime is embedded in the plan
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise EngineError(f"{path} does not load: {logger.last_error()}; build it again")
    return runtime, engine
