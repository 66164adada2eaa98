"""Tiny certified bundles for the tests of the certificate, and changes of their graphs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from regcache_deploy.bundling.certify import certify_bundle
from regcache_deploy.quantization.plan import make_plan
from regcache_deploy.quantization.simulate import Calibration
from regcache_export.bundle import write_bundle
from regcache_export.plan import Plan
from regcache_export.targets import GraphOptions
from tests.tiny_plans import PREPROCESS, naive_calibration, tiny_encoder, tiny_regcache

COUNT = 6


def pixels(count: int = COUNT) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (count, 32, 24, 3), dtype=torch.uint8, generator=generator)


def calibration(**changes: Any) -> Calibration:
    encoder = tiny_encoder(**changes)
    return naive_calibration(encoder, tiny_regcache(encoder))


def plan_of(calibrated: Calibration, head: bool = True) -> Plan:
    features = torch.nn.functional.normalize(
        torch.randn(4, 20, generator=torch.Generator().manual_seed(9)), dim=-1
    )
    return make_plan(
        calibrated,
        regcache_config=calibrated.regcache.config if calibrated.regcache else None,
        preprocess=PREPROCESS,
        text_features=features if head else None,
        provenance={"model": "tiny", "baseline": "naive"},
    )


def certified(folder: Path, calibrated: Calibration, options: GraphOptions) -> Path:
    plan = plan_of(calibrated)
    path = write_bundle(plan, folder / "tiny.regcache", options=options)
    certify_bundle(path, plan, options, calibrated, pixels())
    return path


def change_constant(name: str, change: Callable[[np.ndarray], None]) -> Callable[..., None]:
    def apply(model: onnx.ModelProto) -> None:
        (tensor,) = (t for t in model.graph.initializer if t.name == name)
        value = numpy_helper.to_array(tensor).copy()
        change(value)
        tensor.CopyFrom(numpy_helper.from_array(value, name))

    return apply


def one_scale(value: np.ndarray) -> None:
    value *= 1.01
