"""TensorRT's rules for an ONNX graph, each a function from the graph to what breaks it.

Source of each rule: what the parser of TensorRT-RTX 1.7.1 (TensorRT 11's generation) answers,
and what its builder makes of the graph, on a machine without a GPU (`docs/tensorrt.md`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx
from onnx import TensorProto

from .fusion import LOGITS_WITH_BIAS, why_not_int8
from .graph_index import DEQUANTIZE, QUANTIZE, GraphIndex
from .structure import Attention, attentions

MIN_OPSET, MAX_OPSET = 19, 25
MAX_TOPK = 3840
REFUSED = frozenset(
    {
        "ConvInteger",
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "NonZero",
        "QLinearConv",
        "QLinearMatMul",
    }
)
FLOATS: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.DOUBLE: "float64",
}

Findings = Iterator[tuple[str, str]]
"""Name of the node, and what is wrong with it."""

Rule = Callable[[GraphIndex], Findings]


def opset(graph: GraphIndex) -> Findings:
    """Float16 scales need 19; 25 is the newest documented one."""
    if not MIN_OPSET <= graph.opset <= MAX_OPSET:
        yield "graph", f"opset {graph.opset} is not {MIN_OPSET} to {MAX_OPSET}"


def operators(graph: GraphIndex) -> Findings:
    """Operators that the parser refuses, or that need a plugin."""
    for node in graph.nodes:
        if node.domain not in ("", "ai.onnx"):
            yield node.name, f"{node.domain}.{node.op_type} is no standard operator"
        elif node.op_type in REFUSED:
            yield node.name, f"TensorRT has no {node.op_type}"


def zero_points(graph: GraphIndex) -> Findings:
    """Every zero point is 0."""
    for node in graph.of(QUANTIZE, DEQUANTIZE):
        value = graph.array(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if value is not None and value.any():
            yield node.name, f"zero point {value.flat[abs(value).argmax()]} is not 0"
        elif value is None and len(node.input) > 2 and node.input[2]:
            yield node.name, "the zero point is computed at run time"


def signed_codes(graph: GraphIndex) -> Findings:
    """Codes are int8: uint8 is read as int8, which is another range."""
    for node in graph.of(QUANTIZE, DEQUANTIZE):
        code = node.output[0] if node.op_type == QUANTIZE else node.input[0]
        if graph.element_type(code) == TensorProto.UINT8:
            yield node.name, "codes are uint8; TensorRT reads them as int8"


def pixels(graph: GraphIndex) -> Findings:
    """TensorRT computes with no uint8, and moves none: uint8 pixels are cast at once."""
    for node in graph.nodes:
        if node.op_type in ("Cast", "Shape", QUANTIZE, DEQUANTIZE):
            continue
        if any(graph.element_type(name) == TensorProto.UINT8 for name in node.input if name):
            yield node.name, f"{node.op_type} reads uint8; cast it to a float type first"


def integer_bias(graph: GraphIndex) -> Findings:
    """No int32 bias through DequantizeLinear, which is onnxruntime's default."""
    for node in graph.of(DEQUANTIZE):
        if graph.element_type(node.input[0]) == TensorProto.INT32:
            yield node.name, "an int32 constant is dequantized; keep the bias in floating point"


def activation_scales(graph: GraphIndex) -> Findings:
    """An activation has one scale, a weight one per output channel."""
    for node in graph.of(QUANTIZE):
        scale = graph.shape(node.input[1])
        if node.input[0] not in graph.constants and scale not in ([], [1], None):
            yield node.name, f"an activation has {scale} scales; take one"
    for node in graph.of("MatMul"):
        weight = graph.producer.get(node.input[1])
        if weight is None or weight.op_type != DEQUANTIZE:
            continue
        scale, shape = graph.shape(weight.input[1]), graph.shape(weight.input[0])
        axis = next((a.i for a in weight.attribute if a.name == "axis"), 1)
        if scale and scale != [1] and shape and axis % len(shape) != len(shape) - 1:
            yield node.name, f"the weight's scales run along axis {axis}, not its outputs"


def float_types(graph: GraphIndex) -> Findings:
    """A strongly typed network casts nothing by itself."""
    for node in graph.of("MatMul", "Gemm", "Add", "Mul", "Concat", "Conv"):
        types = {graph.element_type(name) for name in node.input if name} & FLOATS.keys()
        if len(types) > 1:
            yield node.name, f"inputs are {' and '.join(sorted(FLOATS[t] for t in types))}"


def topk(graph: GraphIndex) -> Findings:
    """K is a constant of at most 3840."""
    for node in graph.of("TopK"):
        count = graph.array(node.input[1])
        if count is None:
            yield node.name, "K is computed at run time"
        elif int(count.flat[0]) > MAX_TOPK:
            yield node.name, f"K is {int(count.flat[0])}, and TensorRT ends at {MAX_TOPK}"


def scatter(graph: GraphIndex) -> Findings:
    """No reduction while scattering."""
    for node in graph.of("ScatterElements", "ScatterND"):
        how = next((a.s.decode() for a in node.attribute if a.name == "reduction"), "none")
        if how != "none":
            yield node.name, f"reduction '{how}' is refused by TensorRT-RTX"


def batch_expand(graph: GraphIndex) -> Findings:
    """A constant is expanded to the batch before it joins a value that has one."""
    for node in graph.of("Concat"):
        sizes = {name: graph.shape(name) for name in node.input}
        if not any(size and size[0] is None for size in sizes.values()):
            continue
        for name, size in sizes.items():
            if name in graph.constants and size and len(size) > 1:
                yield node.name, f"{name} has batch {size[0]} beside a batch that varies"


def attention_operator(graph: GraphIndex) -> Findings:
    """The Attention operator parses in float32, and then no kernel is found."""
    for node in graph.of("Attention"):
        if graph.element_type(node.input[0]) == TensorProto.FLOAT:
            yield node.name, "Attention in float32 does not build; take float16"


def packed_qkv(graph: GraphIndex) -> Findings:
    """A quantized linear is not split afterwards: it would run in float16."""
    for node in graph.of("Split"):
        source = graph.producer.get(node.input[0])
        if source is not None and source.op_type == "Add":
            source = _first(graph, source, "MatMul")
        if source is None or source.op_type != "MatMul":
            continue
        weight = graph.producer.get(source.input[1])
        if weight is not None and weight.op_type == DEQUANTIZE:
            yield source.name, "its output is split; write one MatMul for each part"


def output_quantization(graph: GraphIndex) -> Findings:
    """No Q/DQ directly on the output of a linear or of the first attention product."""
    for node in graph.of(QUANTIZE):
        source = graph.producer.get(node.input[0])
        if source is not None and source.op_type == "Add":
            source = _first(graph, source, "MatMul")
        if source is not None and source.op_type in ("MatMul", "Gemm"):
            yield node.name, f"it quantizes the output of {source.name}; leave that in float"


def attention_quantization(graph: GraphIndex) -> Findings:
    """Attention is quantized whole, and only where it fuses."""
    for attention in attentions(graph):
        quantized = attention.quantized_operands
        if not quantized:
            continue
        if len(quantized) < len(Attention.OPERANDS):
            yield attention.name, f"only {', '.join(quantized)} of its operands are quantized"
        elif attention.has_bias:
            yield attention.name, f"INT8 attention does not fuse: {LOGITS_WITH_BIAS}"
        elif attention.tokens is not None and attention.head_size is not None:
            reason = why_not_int8(attention.tokens, attention.head_size)
            if reason:
                yield attention.name, f"INT8 attention does not fuse: {reason}"


RULES: dict[str, Rule] = {
    "opset": opset,
    "operator": operators,
    "zero-point": zero_points,
    "signed-codes": signed_codes,
    "pixels": pixels,
    "integer-bias": integer_bias,
    "activation-scale": activation_scales,
    "float-type": float_types,
    "topk": topk,
    "scatter-reduction": scatter,
    "batch-expand": batch_expand,
    "attention-operator": attention_operator,
    "packed-qkv": packed_qkv,
    "output-quantization": output_quantization,
    "attention-quantization": attention_quantization,
}
"""By the name that a finding carries."""


def _first(graph: GraphIndex, node: onnx.NodeProto, operator: str) -> onnx.NodeProto | None:
    """An input of `node` computed by `operator`, the other one being a constant."""
    if not any(name in graph.constants for name in node.input):
        return None
    sources = (graph.producer.get(name) for name in node.input)
    return next((s for s in sources if s is not None and s.op_type == operator), None)
