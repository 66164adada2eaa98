"""What the tests of every baseline ask of a calibration."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from regcache_deploy.encoders.canonical import Encoder
from regcache_deploy.quantization.nonuniform import LogSqrt2, TwinGelu, TwinSoftmax
from regcache_deploy.quantization.quantizers import Quantizer, Uniform
from regcache_deploy.quantization.simulate import Calibration
from tests.tiny_plans import tiny_images

FORMS = pytest.mark.parametrize("form", ["paper", "deploy"])


def relative_error(calibration: Calibration, reference: Encoder | None = None) -> float:
    """Of the embeddings: against another encoder without RegCache, or the calibration's own."""
    images = tiny_images(16, seed=4)
    expected = (reference or calibration.encoder)(
        images, regcache=None if reference else calibration.regcache
    )
    got = calibration.encoder(images, calibration.numerics(), calibration.regcache)
    return float((got - expected).norm() / expected.norm())


def numbers(calibration: Calibration) -> list[Tensor]:
    """Every number of a calibration, in a fixed order: quantizers and folded weights."""
    found = [calibration.encoder.weights[name] for name in sorted(calibration.encoder.weights)]
    quantization = calibration.quantization
    pairs = [(layer.input, layer.weight) for layer in quantization.linears.values()]
    for pair in [*pairs, *quantization.matmuls.values()]:
        found += [number for quantizer in pair for number in _of(quantizer)]
    return found


def _of(quantizer: Quantizer) -> list[Tensor]:
    if isinstance(quantizer, TwinSoftmax):
        return [torch.tensor(quantizer.split)]
    if isinstance(quantizer, LogSqrt2):
        return [quantizer.delta]
    if isinstance(quantizer, TwinGelu):
        return [quantizer.scale]
    assert isinstance(quantizer, Uniform)
    return [quantizer.scale, quantizer.zero_point]
