"""Which kernels a built engine has, from the builder's log or from the engine inspector.

A layer of the log is one line:

    Name: N, LayerType: gemm, Inputs: [ { Name: .., Datatype: Int8, .. }], Constants: [..],
    Outputs: [..], TacticName: .., StreamId: 0, Metadata: [ONNX Layer: blocks.0.attn.q/MatMul]..

The inspector says the same as JSON, in two schemas: TensorRT 10 has `Format/Datatype` in one string
("Row major Int8 format") and lists `Bindings`; TensorRT 11 has `Datatype` apart, and `I/O Tensors`.
Earlier versions of TensorRT 10 list no `Constants`: a GEMM's weight, factors and bias are inputs.
The log's form was recorded from TensorRT-RTX 1.7.1; that of TensorRT 10 was read from logs that
others have published, the JSON's from documentation.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import EngineError

_LINE = re.compile(r"^\s*Name: (?P<name>.*?), LayerType: (?P<type>\w+), (?P<rest>.*)$")
_LISTS = re.compile(r"(Inputs|Constants|Outputs): \[(.*?)\](?=, (?:Constants|Outputs|TacticName))")
_TENSOR = re.compile(r"Name: (.*?), .*?Datatype: ([^,{}]*)")
_TACTIC = re.compile(r"TacticName: ([^,]*),")
_ONNX = re.compile(r"\[ONNX Layer: ([^\]]*)\]")

_TYPES = {
    "int8": "int8",
    "half": "half",
    "fp16": "half",
    "float16": "half",
    "float": "float",
    "fp32": "float",
    "float32": "float",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "fp8": "fp8",
    "int32": "int32",
    "int64": "int64",
    "bool": "bool",
    "uint8": "uint8",
}
_CONTROL = frozenset({"signal", "wait", "shape_call", "NoOp", "Signal", "Wait"})
_GEMM_TYPES = frozenset({"gemm", "MatrixMultiply", "fc", "FullyConnected"})
_CONV_TYPES = frozenset({"correlation", "Convolution", "CaskConvolution", "conv"})
_PRODUCTS = ("_gemm", "_bmm", "_mha")
_FACTORS = ("float", "float")
"""Of a GEMM's result and of what is added to it: the last two constants of every GEMM."""
_FACTOR_NAMES = ("_alpha", "_beta")
_FUSED_GEMM = re.compile(r"(?:Fc|Gemm|Matm|MatMul)")


@dataclass(frozen=True)
class Layer:
    """One layer of an engine.

    Attributes:
        name, type: as TensorRT calls them.
        inputs, constants, outputs: element types, for example `int8`.
        onnx: names of the ONNX nodes in it.
        tactic: kernel name.
    """

    name: str
    type: str
    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    outputs: tuple[str, ...]
    onnx: tuple[str, ...] = ()
    tactic: str = ""

    @property
    def is_control(self) -> bool:
        """It only orders other layers."""
        return self.type in _CONTROL

    @property
    def kind(self) -> str:
        """`int8_mha`, `half_mha`, `float_mha`; `*_gemm` (a weight), `*_bmm`; `conv`, `other`.

        A product whose operands differ (int8 codes that are dequantized in front of a float16
        GEMM) has the kind of the wider one.
        """
        if "mha" in self.name.lower() or "mha" in self.tactic.lower():
            return f"{_widest(self.inputs)}_mha"
        if self.type in _CONV_TYPES:
            return "conv"
        fused = self.type not in ("kgen", "PointWiseV2") and _FUSED_GEMM.search(self.name)
        if self.type not in _GEMM_TYPES and not fused:
            return "other"
        products = [n for n in self.onnx if n.endswith(("qk/MatMul", "pv/MatMul"))]
        weights = self.constants
        if weights[-2:] == _FACTORS:
            weights = weights[:-2]
        if self.type in _GEMM_TYPES and weights and not products:
            operands = (*self.inputs[:1], *weights[:1])
        else:
            operands = (*self.inputs, *weights)
        return f"{_widest(operands)}_{'bmm' if products else 'gemm'}"


def layers_from_log(messages: Iterable[str]) -> list[Layer]:
    """Layers of the builder's verbose log; empty if it holds no layer dump."""
    layers = []
    for message in messages:
        if "LayerType: " not in message:
            continue
        for line in message.splitlines():
            found = _LINE.match(line)
            if not found:
                continue
            lists = {kind: _TENSOR.findall(text) for kind, text in _LISTS.findall(line)}
            inputs, constants = _operands(lists.get("Inputs", []), lists.get("Constants", []))
            tactic = _TACTIC.search(line)
            layers.append(
                Layer(
                    name=found["name"],
                    type=found["type"],
                    inputs=inputs,
                    constants=constants,
                    outputs=_types(lists.get("Outputs", [])),
                    onnx=tuple(_ONNX.findall(line)),
                    tactic=tactic[1] if tactic else "",
                )
            )
    return layers


def layers_from_inspector(text: str) -> list[Layer]:
    """Layers of `engine_inspector.get_engine_information(JSON)`, either schema.

    Raises:
        EngineError: no such JSON; or names only, because the engine was built without
            detailed profiling.
    """
    try:
        document = json.loads(text)
        entries = document["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(f"the engine inspector's answer is not readable: {error}") from error
    if entries and not isinstance(entries[0], dict):
        raise EngineError("the engine lists names only; build it with detailed profiling")
    layers = []
    for entry in entries:
        lists = [_tensors(entry.get(kind, [])) for kind in ("Inputs", "Constants", "Outputs")]
        inputs, constants = _operands(*lists[:2])
        layers.append(
            Layer(
                name=str(entry.get("Name", "")),
                type=str(entry.get("LayerType", "")),
                inputs=inputs,
                constants=constants,
                outputs=_types(lists[2]),
                onnx=tuple(_ONNX.findall(str(entry.get("Metadata", "")))),
                tactic=str(entry.get("TacticName", "")),
            )
        )
    return layers


def count_kinds(layers: Iterable[Layer]) -> dict[str, int]:
    """Layers by kind, without those that only order others; sorted by name."""
    counts = Counter(layer.kind for layer in layers if not layer.is_control)
    return dict(sorted(counts.items()))


def product_kinds(layers: Iterable[Layer]) -> dict[str, list[str]]:
    """ONNX node of a matrix product -> kinds of all layers that name it, sorted.

    They are several where the scale of a GEMM is fused into what follows.
    """
    kinds: dict[str, set[str]] = {}
    for layer in layers:
        for node in layer.onnx:
            kinds.setdefault(node, set()).add(layer.kind)
    return {
        node: sorted(found)
        for node, found in sorted(kinds.items())
        if any(kind.endswith(_PRODUCTS) for kind in found)
    }


def missing_promises(
    products: Mapping[str, Sequence[str]], promise: Mapping[str, str]
) -> dict[str, str]:
    """Promised kinds that no layer keeps: ONNX node -> what holds it instead.

    Args:
        products: from `product_kinds`; one layer of the promised kind is enough.
        promise: ONNX node -> kind.
    """
    return {
        node: ", ".join(products.get(node, ())) or "no matrix product"
        for node, kind in promise.items()
        if kind not in products.get(node, ())
    }


Tensors = list[tuple[str, str]]
"""Names, and what is said of their types."""


def _operands(inputs: Tensors, constants: Tensors) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Types of inputs and of constants, also where all of them are listed as inputs."""
    if any(name.endswith(_FACTOR_NAMES) for name, _ in inputs):
        rest = [tensor for tensor in inputs if not tensor[0].endswith(_FACTOR_NAMES)]
        return _types(rest[:1]), (*_types(rest[1:]), *_FACTORS)
    return _types(inputs), _types(constants)


def _types(tensors: Tensors) -> tuple[str, ...]:
    out = []
    for _, text in tensors:
        words = re.findall(r"\w+", text.lower()) or ["unknown"]
        out.append(next((_TYPES[word] for word in words if word in _TYPES), words[0]))
    return tuple(out)


def _tensors(entries: list[dict[str, Any]]) -> Tensors:
    keys = ("Datatype", "DataType", "Format/Datatype")
    return [
        (str(entry.get("Name", "")), str(next((entry[k] for k in keys if entry.get(k)), "")))
        for entry in entries
    ]


def _widest(types: Iterable[str]) -> str:
    known = [kind for kind in types if kind not in ("int32", "int64", "bool", "unknown")]
    for kind in ("float", "bfloat16", "half", "fp8", "int8"):
        if kind in known:
            return kind
    return "unknown"
