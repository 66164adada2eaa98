"""The integer product's share of a linear whose input is treated per channel.

    y = Q(x * m) (W / m)_int + x[ch] W[ch] + b

`m` are factors that make the channels' ranges alike (SmoothQuant, arXiv 2211.10438), `ch` a few
channels that are multiplied in floating point: their rows of the integer weight are 0, so that
whatever code their values get counts for nothing. The plan holds the weight W itself, so that a
linear that leaves the quantized ones is a plain product again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .tensor_quant import LinearQuant

Array = npt.NDArray[Any]

MULTIPLIED_ROLE = "mlp.fc2"
"""The one linear whose factors stay in the graph; LayerNorm and values take those of the others."""

FLOAT_CHANNEL_ROLES = ("mlp.fc1", "mlp.fc2")
"""Not qkv, whose product two targets cut in three; not out_proj, because TensorRT-RTX 1.7.1 fuses
no INT8 attention whose result is read in float, too. Both are smoothed for nothing."""


def integer_weight(weight: Array, quant: LinearQuant) -> Array:
    """What the integer product's codes stand for, `[C_out, C_in]`, from the linear's weight."""
    if quant.input_multiplier is not None:
        # powers of two: exact in every type
        weight = weight / quant.input_multiplier.astype(weight.dtype)
    if quant.float_channels is not None:
        weight = weight.copy()
        weight[:, quant.float_channels] = 0
    return weight


def float_weight(weight: Array, quant: LinearQuant) -> Array:
    """Columns of the channels in floating point, `[C_out, c]`; c may be 0."""
    if quant.float_channels is None:
        return weight[:, :0]
    return weight[:, quant.float_channels]


def problem_of(name: str, quant: LinearQuant, inputs: int) -> str | None:
    """What is wrong with the treatment of the linear `name` with `inputs` channels, or None."""
    role, factors, channels = name.split(".", 2)[-1], quant.input_multiplier, quant.float_channels
    if factors is not None:
        if role != MULTIPLIED_ROLE:
            return f"{name} has input factors, which only {MULTIPLIED_ROLE} may have"
        if factors.shape != (inputs,) or not (np.frexp(factors)[0] == 0.5).all():
            return f"the input factors of {name} are not {inputs} powers of two"
    if channels is not None:
        if role not in FLOAT_CHANNEL_ROLES:
            return f"{name} has channels in float, which {', '.join(FLOAT_CHANNEL_ROLES)} may have"
        known = channels.ndim == 1 and np.unique(channels).size == channels.size > 0
        if not known or channels.min() < 0 or channels.max() >= inputs:
            return f"the float channels of {name} are not some of its {inputs} channels"
        if quant.weight.zero_point.any():
            return f"the weight of {name} has a zero point beside channels in float"
    return None
