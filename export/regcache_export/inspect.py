"""What ONNX Runtime really runs: the operators of its optimized graph.

ONNX Runtime falls back to float without a word where it does not recognize a quantized pattern, so
the only proof of integer arithmetic is the graph after its optimizations.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import onnx

from regcache_engines.onnxruntime_session import open_session

INTEGER_GEMMS = frozenset(
    {
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "QGemm",
        "QLinearMatMul",
    }
)
"""Operators (standard and com.microsoft) that multiply integer matrices."""


def optimized_op_counts(model_path: Path) -> Counter[str]:
    """Operators of a model after ONNX Runtime's default optimizations for the CPU.

    Raises:
        EngineError: onnxruntime is missing, or cannot load the model.
    """
    with tempfile.TemporaryDirectory(prefix="regcache-inspect-") as folder:
        optimized = Path(folder) / "optimized.onnx"
        open_session(model_path, optimized_model=optimized)
        model = onnx.load(str(optimized), load_external_data=False)
    return _count(model.graph)


def integer_gemms(model_path: Path) -> int:
    """Number of integer matrix products that ONNX Runtime runs for this model on the CPU.

    Raises:
        EngineError: onnxruntime is missing, or cannot load the model.
    """
    counts = optimized_op_counts(model_path)
    return sum(counts[operator] for operator in INTEGER_GEMMS)


def _count(graph: onnx.GraphProto) -> Counter[str]:
    counts: Counter[str] = Counter()
    for node in graph.node:
        counts[node.op_type] += 1
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                counts += _count(attribute.g)
    return counts
