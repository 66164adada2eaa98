"""A TensorRT whose engines are ONNX files and whose GPU is ONNX Runtime: there is no GPU here.

Everything between the command line and the runtime's own calls is the real code: probe, builder,
sidecar, engine, its slots and memory. The fake answers by the documentation of TensorRT 11, and its
builder logs layers in the form that was recorded from TensorRT-RTX. What it computes is right, how
long it takes says nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from regcache_engines.tensorrt import engine as engine_module
from regcache_engines.tensorrt import probe as probing
from regcache_engines.tensorrt.probe import EngineName
from regcache_export.checks import check_tensorrt
from tests.engines.tensorrt_fakes import H100, FakeDevice

VERSION = "11.4.0.106"
TYPES = {"int8_gemm": "Int8", "int8_mha": "Int8", "half_mha": "Half", "half_gemm": "Half"}
FREE = -1


class Logger:
    """Base of the recorder."""

    INTERNAL_ERROR, ERROR, VERBOSE = 0, 1, 4


class Tensor:
    """An input or output of a network."""

    def __init__(self, value: onnx.ValueInfoProto) -> None:
        kind = value.type.tensor_type
        self.name = value.name
        self.shape = [d.dim_value if d.HasField("dim_value") else FREE for d in kind.shape.dim]
        self.dtype = {1: "float32", 2: "uint8"}.get(kind.elem_type, "another")


class Network:
    """Filled by the parser."""

    data: bytes
    model: onnx.ModelProto
    num_inputs = num_outputs = 1

    def get_input(self, index: int) -> Tensor:
        return Tensor(self.model.graph.input[index])

    def get_output(self, index: int) -> Tensor:
        return Tensor(self.model.graph.output[index])


class Parser:
    """Takes what `onnx` takes."""

    def __init__(self, network: Network, logger: Any) -> None:
        self.network = network

    def parse(self, model: bytes) -> bool:
        self.network.data, self.network.model = model, onnx.load_from_string(model)
        return True


class Context:
    """Runs on the fake device's memory."""

    def __init__(self, machine: FakeMachine, data: bytes) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.machine, self.addresses = machine, dict[str, int]()
        self.device = machine.devices[-1]  # an engine opens its device first
        self.session = onnxruntime.InferenceSession(data, options)
        self.image, self.features = self.session.get_inputs()[0], self.session.get_outputs()[0]
        self.shape: tuple[int, ...] = ()

    def set_tensor_address(self, name: str, pointer: int) -> None:
        self.addresses[name] = pointer

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return True

    def infer_shapes(self) -> list[str]:
        return []

    def execute_async_v3(self, stream: int) -> bool:
        shape, device = self.shape, self.device
        poison = self.machine.overflows == form_of(self.session)

        def kernel() -> None:
            memory = device.memory[self.addresses[self.image.name]]
            dtype = np.uint8 if self.image.type == "tensor(uint8)" else np.float32
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            images = memory[:size].view(dtype).reshape(shape)
            found = self.session.run(None, {self.image.name: images})[0]
            out = device.memory[self.addresses[self.features.name]].view(np.float32)
            out[: found.size] = np.nan if poison else found.ravel()

        if device.capturing is None:
            kernel()
        else:
            device.capturing.append(kernel)
        return True


class FakeMachine:
    """A GPU with TensorRT.

    Attributes:
        in_half: linears that the builder leaves in half precision, promised or not.
        overflows: the file whose features become NaN, `int8` or `float`, or nothing.
        builds: how many engines were built.
    """

    def __init__(self) -> None:
        self.in_half: set[str] = set()
        self.overflows = ""
        self.builds = 0
        self.devices: list[FakeDevice] = []

    def open_device(self, name: str, device_id: int = 0) -> FakeDevice:
        self.devices.append(FakeDevice())
        return self.devices[-1]

    def runtime(self, name: str) -> Any:
        """The Python module."""
        machine = self

        class Builder:
            def __init__(self, logger: Any) -> None:
                self.logger = logger

            def create_network(self, flags: int) -> Network:
                return Network()

            def create_builder_config(self) -> Any:
                return SimpleNamespace(
                    add_optimization_profile=lambda profile: None,
                    set_memory_pool_limit=lambda pool, size: None,
                    set_compute_capability=lambda capability, index: None,
                )

            def create_optimization_profile(self) -> Any:
                return SimpleNamespace(set_shape=lambda name, *shapes: None)

            def build_serialized_network(self, network: Network, config: Any) -> bytes:
                machine.builds += 1
                self.logger.log(Logger.VERBOSE, "\n".join(machine.layers(network.model)))
                return network.data

        def deserialize(data: bytes) -> Any:
            return SimpleNamespace(create_execution_context=lambda: Context(machine, data))

        return SimpleNamespace(
            __name__=name,
            __spec__=ModuleSpec(name, None),
            __version__=VERSION,
            ILogger=Logger,
            Builder=Builder,
            OnnxParser=Parser,
            NetworkDefinitionCreationFlag=SimpleNamespace(),
            ProfilingVerbosity=SimpleNamespace(DETAILED=1),
            MemoryPoolType=SimpleNamespace(WORKSPACE=1),
            BuilderFlag=SimpleNamespace(),
            ComputeCapability=SimpleNamespace(SM90=90),
            uint8="uint8",
            float32="float32",
            Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=deserialize),
        )

    def layers(self, model: onnx.ModelProto) -> Iterator[str]:
        """What the static check promises, less what stays in half precision."""
        promise = check_tensorrt(model).promise
        products = [node.name for node in model.graph.node if node.op_type == "MatMul"]
        for index, node in enumerate(products):
            kind = promise.get(node, "half_gemm")
            if any(node.startswith(name) for name in self.in_half):
                kind = "half_gemm"
            form = "mha" if kind.endswith("mha") else "gemm"
            operand = f"[ {{ Name: t, Datatype: {TYPES[kind]}}}]"
            yield (
                f"Name: {form}_{index}, LayerType: {form}, Inputs: {operand}, "
                f"Constants: {operand}, Outputs: {operand}, TacticName: t, StreamId: 0, "
                f"Metadata: [ONNX Layer: {node}]"
            )


def form_of(session: Any) -> str:
    """`int8` or `float`, as the metadata of our exporter says."""
    properties = session.get_modelmeta().custom_metadata_map
    return "float" if properties["regcache.quantized_linears"] == "0" else "int8"


@contextmanager
def machine_with(
    name: EngineName, monkeypatch: pytest.MonkeyPatch, gpu: bool = True
) -> Iterator[FakeMachine]:
    """An H100 with this runtime, or a machine that has the runtime alone."""
    machine = FakeMachine()
    probing.import_runtime.cache_clear()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, name, machine.runtime(name))
        found = (H100, "") if gpu else (None, "no driver")
        patch.setattr(probing, "find_gpu", lambda device_id: found)
        patch.setattr(engine_module, "open_device", machine.open_device)
        yield machine
    probing.import_runtime.cache_clear()
