"""What each quantized linear costs by itself, with RegCache in place."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..encoders.canonical import FLOAT, Numerics
from ..encoders.rotary import Survivors
from ..quantization.simulate import Calibration, SimulatedNumerics


@torch.no_grad()
def alone_errors(
    calibration: Calibration, images: Tensor, advance: Callable[[int], None] = lambda n: None
) -> dict[str, float]:
    """One minus the mean cosine of the features when only one linear is quantized.

    The plan's own quantizers and its RegCache; the reference is the float encoder with the same
    RegCache, so that only quantization counts.

    Args:
        calibration: encoder, quantizers and register.
        images: normalized `[B, 3, H, W]`.

    Returns:
        Every quantized linear, in the order of the encoder.
    """
    encoder, regcache = calibration.encoder, calibration.regcache
    tokens = encoder.embed(images)

    def features(numerics: Numerics) -> Tensor:
        survivors = Survivors()
        after = encoder.run_blocks(tokens, 0, None, numerics, regcache, survivors=survivors)
        return encoder.pool(after, survivors).double()

    reference = features(FLOAT)
    errors = {}
    for name in encoder.spec.linears():
        if name not in calibration.quantization.linears:
            continue
        found = features(SimulatedNumerics(calibration.quantization.only(name)))
        errors[name] = max(1 - float(F.cosine_similarity(found, reference, dim=-1).mean()), 0.0)
        advance(1)
    return errors
