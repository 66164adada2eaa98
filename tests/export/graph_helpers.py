"""Run a model that was just built, and compare features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

from regcache_deploy.quantization.plan import make_plan
from regcache_deploy.quantization.simulate import Calibration
from regcache_export.bundle import add_files
from regcache_export.graph import INPUT_NAME, serialize
from regcache_export.plan import Plan


def plan_of(calibration: Calibration) -> Plan:
    regcache = calibration.regcache
    return make_plan(calibration, regcache_config=regcache.config if regcache else None)


def run(
    model: onnx.ModelProto, images: Tensor, optimize: bool = True, outputs: list[str] | None = None
) -> list[Any]:
    """Outputs of one ONNX Runtime session on the CPU, one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        serialize(model), options, providers=["CPUExecutionProvider"]
    )
    results: list[Any] = session.run(outputs, {INPUT_NAME: images.numpy()})
    return results


def cosine(a: Any, b: Any) -> float:
    """Least cosine similarity of the rows."""
    a, b = torch.as_tensor(a).double(), torch.as_tensor(b).double()
    return float(F.cosine_similarity(a, b, dim=-1).min())


def quantize_nodes(model: onnx.ModelProto) -> list[str]:
    """Outputs of all QuantizeLinear nodes, in order."""
    return [n.output[0] for n in model.graph.node if n.op_type == "QuantizeLinear"]


def rewrite(path: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    """Change the model and give it a manifest that fits: what no file hash can see."""
    model = onnx.load(path / "model.onnx")
    change(model)
    add_files(path, {"model.onnx": model.SerializeToString(deterministic=True)})
