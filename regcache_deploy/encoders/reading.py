"""Read parameters of any PyTorch module into canonical weights; shared by the adapters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from regcache_export.spec import Activation

from ..errors import UnsupportedEncoderError

Weights = dict[str, Tensor]


def tensor(parameter: Any) -> Tensor:
    """A parameter as detached float32."""
    out: Tensor = parameter.detach().to(torch.float32)
    return out


def affine(module: Any, name: str) -> Weights:
    """`name.weight` and `name.bias` of a linear, convolution or norm; a missing bias is zeros."""
    weight = tensor(module.weight)
    bias = getattr(module, "bias", None)
    return {
        f"{name}.weight": weight,
        f"{name}.bias": tensor(bias) if bias is not None else weight.new_zeros(len(weight)),
    }


def contiguous(weights: Weights) -> Weights:
    return {name: value.contiguous() for name, value in weights.items()}


def activation_of(module: Any) -> Activation:
    """The canonical name of an MLP activation.

    Raises:
        UnsupportedEncoderError: neither GELU, nor its tanh form, nor QuickGELU.
    """
    name = type(module).__name__
    if name == "QuickGELU":
        return "quick_gelu"
    if name == "GELUTanh" or (isinstance(module, nn.GELU) and module.approximate == "tanh"):
        return "gelu_tanh"
    if name == "GELU":
        return "gelu"
    raise UnsupportedEncoderError(f"unsupported MLP activation {name}")


def is_norm(module: Any) -> bool:
    """Whether `module` is a LayerNorm (False: Identity).

    Raises:
        UnsupportedEncoderError: another kind of norm, e.g. RMSNorm.
    """
    if module is None or isinstance(module, nn.Identity):
        return False
    if not isinstance(module, nn.LayerNorm):
        raise UnsupportedEncoderError(
            f"unsupported norm {type(module).__name__}; the encoder needs LayerNorm"
        )
    if module.weight is None:
        raise UnsupportedEncoderError("a LayerNorm without weights is not supported")
    return True


def single_eps(modules: Iterable[nn.Module]) -> float:
    """The one epsilon of all LayerNorms.

    Raises:
        UnsupportedEncoderError: they differ.
    """
    epsilons = {float(m.eps) for m in modules if isinstance(m, nn.LayerNorm)}
    if len(epsilons) != 1:
        raise UnsupportedEncoderError(f"LayerNorms with different epsilons: {sorted(epsilons)}")
    return epsilons.pop()
