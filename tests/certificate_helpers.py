"""Tiny certified bundles for the tests of the certificate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from regcache_deploy.certify import certify_bundle
from regcache_deploy.planning import make_plan
from regcache_deploy.quantization import Calibration
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
