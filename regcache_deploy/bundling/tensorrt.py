"""What `--target tensorrt` adds to an export: attention in INT8, and a float16 body to account for.

The simulation is in float32. The graph is therefore verified twice: with a float32 body it must be
the simulation; what the float16 body of the delivered graph changes is measured and reported.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from regcache_export.bundle import write_bundle
from regcache_export.plan import Plan
from regcache_export.targets import find_target

from ..evaluation.corners import simulate
from ..evaluation.deployed import compare_features
from ..evaluation.image_sets import ImageSets
from ..quantization.simulate import Calibration
from ..quantization.tensorrt import for_tensorrt
from ..work.progress import Reporter
from .bundle import BundleWriter


def is_tensorrt(target: str) -> bool:
    """The target has TensorRT's form."""
    return find_target(target).form == "tensorrt"


def with_attention(
    calibration: Calibration, sets: ImageSets, batch_size: int, reporter: Reporter
) -> tuple[Calibration, Tensor]:
    """The calibration for TensorRT, and its simulated embeddings `[n, E]` of the evaluation images.

    Raises:
        DataError: NaN in attention.
    """
    batches = -(-len(sets.evaluation) // batch_size)
    with reporter.stage("calibration of attention, simulation", batches) as advance:
        changed = for_tensorrt(calibration, sets.calibration_tokens)
        return changed, simulate(changed, sets.evaluation.batches(batch_size), advance)


def float32_twin(writer: BundleWriter, plan: Plan, sets: ImageSets, reporter: Reporter) -> Tensor:
    """Embeddings `[n, E]` of the same graph with a float32 body, from ONNX Runtime."""
    graph = replace(writer.graph, body="float32")
    with tempfile.TemporaryDirectory(dir=writer.path.parent, prefix=".float32.") as folder:
        bundle = write_bundle(plan, Path(folder) / "twin.regcache", options=graph)
        return writer.run(bundle, sets, reporter)


def float16_cost(delivered: Tensor, simulated: Tensor, sets: ImageSets) -> dict[str, Any]:
    """How far the float16 body moves the embeddings `[n, E]` from the float32 simulation."""
    found = asdict(compare_features(delivered, simulated, sets.head))
    return {"float16_body": {k: v for k, v in found.items() if v is not None}}
