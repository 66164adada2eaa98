"""Whether the deployed graph is the simulated one, where noise decides and where it does not."""

from __future__ import annotations

import pytest
import torch

from regcache_deploy.errors import VerificationError
from regcache_deploy.evaluation.deployed import Agreement, compare_features, float64_control
from regcache_deploy.quantization.quantizers import Bits
from tests.tiny_plans import naive_calibration, tiny_encoder, tiny_images, tiny_regcache


def test_the_bounds_give_way_to_measured_noise_alone() -> None:
    """A broken encoder's classes hang on rounding ties; the simulation's own do, too."""
    Agreement(0.995, 0.9999, 0.99, 200).check()
    for flipped in (Agreement(0.96, 0.99999, 0.9, 60), Agreement(1.0, 0.999, 0.9, 60)):
        assert not flipped.within
        with pytest.raises(VerificationError):
            flipped.check()
    Agreement(0.96, 0.99999, 0.9, 60, control=0.9999, control_top1=0.98).check()
    Agreement(1.0, 0.999, 0.9, 60, control=0.9997, control_top1=1.0).check()
    with pytest.raises(VerificationError, match=r"at least 92\.0%"):
        Agreement(0.9, 0.99999, 0.9, 60, control=0.9999, control_top1=0.98).check()


def test_the_control_is_the_simulation_against_itself() -> None:
    encoder = tiny_encoder()
    calibration = naive_calibration(encoder, tiny_regcache(encoder), Bits(4, 4))
    head = torch.nn.functional.normalize(torch.randn(9, 20), dim=-1)
    with torch.no_grad():
        control = float64_control(calibration, tiny_images(6).split(4), head)
        other = calibration.encoder(tiny_images(6), calibration.numerics(), calibration.regcache)
        plain = encoder(tiny_images(6))
    assert control.n == 6
    assert control.mean_cosine > 0.99
    assert control.mean_cosine > compare_features(other, plain, head).mean_cosine
