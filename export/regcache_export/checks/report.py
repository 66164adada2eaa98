"""The verdict on a graph: broken rules, and for every block what TensorRT will make of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from ..errors import BundleError
from .fusion import LOGITS_WITH_BIAS, why_not_int8
from .graph_index import GraphIndex, block_of
from .rules import RULES
from .structure import Attention, attentions, linears


@dataclass(frozen=True)
class Finding:
    """A broken rule.

    Attributes:
        rule: its name, a key of `RULES`.
        node: where.
        message: what is wrong.
    """

    rule: str
    node: str
    message: str


@dataclass(frozen=True)
class BlockVerdict:
    """What one block becomes.

    Attributes:
        block: index.
        int8_linears, linears: MatMuls with a weight: in INT8, and in all (q, k and v apart).
        attention: `int8`, `float16`, `float32` or `none`.
        why: why attention is not INT8, or empty.
    """

    block: int
    int8_linears: int
    linears: int
    attention: str
    why: str


@dataclass(frozen=True)
class Report:
    """Result of a check.

    Attributes:
        findings: broken rules; the graph builds as promised only if there are none.
        blocks: by index.
        promise: MatMul -> kind of the layer that must hold it after a build: `int8_gemm`,
            `int8_mha` or `half_mha`.
    """

    findings: tuple[Finding, ...]
    blocks: tuple[BlockVerdict, ...]
    promise: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return {
            "target": "tensorrt",
            "ok": not self.findings,
            "findings": [vars(finding) for finding in self.findings],
            "blocks": [vars(block) for block in self.blocks],
            "promise": self.promise,
        }

    def require_ok(self) -> None:
        """Raise BundleError with the first broken rule's name."""
        if self.findings:
            first, rest = self.findings[0], len(self.findings) - 1
            more = f" (and {rest} more; regcache check lists them)" if rest else ""
            raise BundleError(
                f"rule '{first.rule}' of TensorRT is broken at {first.node}: "
                f"{first.message}{more}; export with --target tensorrt"
            )


def check_tensorrt(model: onnx.ModelProto) -> Report:
    """Hold a graph against every rule. Looks at the ONNX alone, builds nothing.

    Raises:
        BundleError: the types of the graph contradict each other.
    """
    graph = GraphIndex(model)
    findings = tuple(
        Finding(name, node, message)
        for name, rule in RULES.items()
        for node, message in rule(graph)
    )
    by_block = {a: block_of(a.name) for a in attentions(graph)}
    products = [(block_of(linear.name), linear) for linear in linears(graph)]
    indices = sorted(
        {i for i in by_block.values() if i is not None} | {i for i, _ in products if i is not None}
    )
    blocks = []
    for index in indices:
        own = [linear for i, linear in products if i == index]
        attention = next((a for a, i in by_block.items() if i == index), None)
        kind, why = _attention_verdict(attention)
        int8 = sum(linear.kind == "int8" for linear in own)
        blocks.append(BlockVerdict(index, int8, len(own), kind, why))
    promise = {linear.name: "int8_gemm" for _, linear in products if linear.kind == "int8"}
    for attention in by_block:
        layer = {"int8": "int8_mha", "float16": "half_mha"}.get(_attention_verdict(attention)[0])
        if layer:
            promise |= {attention.name: layer, attention.second: layer}
    return Report(findings, tuple(blocks), promise)


def check_file(path: Path, data: bytes | None = None) -> Report:
    """`check_tensorrt` of an ONNX file.

    Args:
        path: the file.
        data: its bytes, where they have been read.

    Raises:
        BundleError: the file is no ONNX model.
    """
    try:
        if data is None:
            data = path.read_bytes()
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf raises classes of its own
        raise BundleError(f"{path} is no readable ONNX file: {error}") from error
    if not model.graph.node:
        raise BundleError(f"{path} holds no graph")
    return check_tensorrt(model)


def require_tensorrt_rules(model: onnx.ModelProto) -> None:
    """Raise BundleError, with the rule's name, where a graph breaks one."""
    check_tensorrt(model).require_ok()


def _attention_verdict(attention: Attention | None) -> tuple[str, str]:
    if attention is None:
        return "none", "no MatMul, Softmax, MatMul found"
    if attention.is_int8:
        return "int8", ""
    if attention.float_type == "float32":
        return "float32", "attention in float32 does not fuse; take a float16 body"
    reason = LOGITS_WITH_BIAS if attention.has_bias else None
    if not reason and attention.tokens is not None and attention.head_size is not None:
        reason = why_not_int8(attention.tokens, attention.head_size)
    return attention.float_type, reason or "its operands are not quantized"
