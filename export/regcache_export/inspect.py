"""What ONNX Runtime really runs: the operators of its optimized graph.

ONNX Runtime falls back to float without a word where it does not recognize a quantized pattern, so
the only proof of integer arithmetic is the graph after its optimizations.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import onnx

from regcache_engines.onnxruntime_engine import import_onnxruntime

from .errors import EngineError

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
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns that an optimized graph is tied to this machine
    with tempfile.TemporaryDirectory(prefix="regcache-inspect-") as folder:
        optimized = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(optimized)
        try:
            onnxruntime.InferenceSession(
                str(model_path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise EngineError(f"ONNX Runtime cannot load {model_path}: {error}") from error
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
