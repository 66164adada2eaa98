"""Centre shift: asymmetric activation codes on hardware that knows no zero point."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..integer_codes import weight_codes
from ..plan import TensorQuant
from ..treated import MULTIPLIED_ROLE, float_weight, integer_weight
from .base import Float64, FoldState, PassResult, Stage

NORMS = {"attn.qkv": "norm1", "mlp.fc1": "norm2"}


class CentreShift:
    """`Q(x) = S (u - z)` with uint8 code u becomes `S (u - 2**(b-1)) + c`, `c = (2**(b-1) - z) S`.

    The signed codes are the unsigned ones less a constant, bit for bit; `x - c` is what they
    quantize, and `W_q c` joins the bias. The subtraction is free where the input comes from a
    LayerNorm (into its bias) or from attention (into the value
    bias: the rows of a softmax sum to 1); for fc2 it is one addition behind the activation.
    """

    name = "centre-shift"
    stage: Stage = "export"
    requires = "quantizers of the activations"
    ensures = "every activation code is signed with zero point 0"

    def __call__(self, state: FoldState) -> PassResult:
        changed = []
        for name, layer in state.linears.items():
            if (shifted := centred(layer.input)) is None:
                continue
            quant, shift = shifted
            whole = state.double(f"{name}.weight")
            weight = dequantized(integer_weight(whole, layer), layer.weight)
            before = state.double(f"{name}.bias")
            state = _subtract(state, name, shift)
            linears = {**state.linears, name: replace(layer, input=quant)}
            moved = weight.sum(axis=1)
            if not name.endswith(MULTIPLIED_ROLE):
                # the input is shifted where it is made, so the float channels see it, too
                moved = moved + float_weight(whole, layer).sum(axis=1)
            bias = before + moved * shift
            state = state.changed({f"{name}.bias": bias}, linears=linears)
            if name.endswith("attn.qkv"):
                # the cached keys and values are projections in floating point, not by W_q
                prefix = {int(name.split(".")[1]): before, **state.prefix_bias}
                state = state.changed({}, prefix_bias=prefix)
            changed.append(name)
        return PassResult(state, tuple(changed))


def centred(quant: TensorQuant) -> tuple[TensorQuant, float] | None:
    """The symmetric quantizer and the shift c, or None where the zero point is 0 already."""
    middle = 0 if quant.signed else 2 ** (quant.bits - 1)
    zero_point = int(quant.zero_point.reshape(()))
    if quant.signed and zero_point == 0:
        return None
    shift = (middle - zero_point) * float(quant.scale.reshape(()))
    return replace(quant, signed=True, zero_point=np.zeros_like(quant.zero_point)), shift


def dequantized(weight: Float64, quant: TensorQuant) -> Float64:
    """The weight `[C_out, C_in]` that the integer GEMM multiplies with."""
    codes = weight_codes(weight, quant).astype(np.float64)
    shape = (-1, 1) if quant.per_channel else ()
    result: Float64 = (codes - quant.zero_point.reshape(shape)) * quant.scale.astype(
        np.float64
    ).reshape(shape)
    return result


def _subtract(state: FoldState, name: str, shift: float) -> FoldState:
    """Take `shift` off the input of the linear `name`."""
    block, role = int(name.split(".")[1]), name.split(".", 2)[2]
    if role in NORMS:
        norm = f"blocks.{block}.{NORMS[role]}.bias"
        return state.changed({norm: state.double(norm) - shift})
    if role == "attn.out_proj":
        qkv = f"blocks.{block}.attn.qkv.bias"
        values = np.zeros(3 * state.encoder.width)
        values[2 * state.encoder.width :] = shift
        prefix = dict(state.prefix_bias)
        if block in prefix:
            prefix[block] = prefix[block] - values
        return state.changed({qkv: state.double(qkv) - values}, prefix_bias=prefix)
    return state.changed({}, input_shift={**state.input_shift, name: -shift})
