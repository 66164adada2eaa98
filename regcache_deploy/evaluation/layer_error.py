"""What each quantized linear costs by itself, with RegCache in place."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..quantization.one_linear import FLOAT_ONLY, numerics_of, one_at_a_time
from ..quantization.simulate import Calibration


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
    encoder, quantization = calibration.encoder, calibration.quantization
    numerics = numerics_of(quantization, quantization.linears)
    found = {}
    for name, features in one_at_a_time(
        encoder, numerics, encoder.embed(images), calibration.regcache
    ):
        found[name] = features.cpu().double()
        advance(1 if name != FLOAT_ONLY else 0)
    reference = found.pop(FLOAT_ONLY)
    return {
        name: max(1 - float(F.cosine_similarity(each, reference, dim=-1).mean()), 0.0)
        for name, each in found.items()
    }
