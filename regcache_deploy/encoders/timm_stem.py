"""timm's `HybridEmbed`: the convolutional stems of ViTamin and MobileCLIP-B, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from regcache_export.stem import StemStep

from ..errors import UnsupportedEncoderError
from .reading import Weights, activation_of, affine, is_norm, tensor

PARTS = {
    "MbConvStages": ("stem", "stages", "pool"),
    "Stem": ("conv1", "norm1", "conv2"),
    "Downsample2d": ("pool", "expand"),
    "StridedConv": ("norm", "proj"),
    "ConvNormAct": ("conv", "bn", "aa"),
    "HybridEmbed": ("backbone", "proj"),
}
"""Modules that are their parts one after the other, and these in order."""

MBCONV = ("pre_norm", "down", "conv1_1x1", "act1", "conv2_kxk", "act2", "conv3_1x1")

Part = tuple[StemStep, Weights]
"""A step and its weights, named below the step."""


def read_stem(embed: Any) -> tuple[tuple[StemStep, ...], Weights]:
    """Steps of a `timm.layers.HybridEmbed`, and their weights.

    Raises:
        UnsupportedEncoderError: a module or an option of one that no step stands for.
    """
    steps, weights = _collected(_read(embed))
    return steps, {f"stem.{name}": value for name, value in weights.items()}


def _collected(parts: Sequence[Part]) -> tuple[tuple[StemStep, ...], Weights]:
    weights = {
        f"{index}.{name}": value
        for index, (_, own) in enumerate(parts)
        for name, value in own.items()
    }
    return tuple(step for step, _ in parts), weights


def _read(module: Any) -> list[Part]:
    kind = type(module).__name__
    if module is None or isinstance(module, (nn.Identity, nn.Dropout)):
        return []
    if kind in PARTS:
        return _in_turn([getattr(module, name, None) for name in PARTS[kind]])
    if type(module) is nn.Sequential or kind == "ConvStem":
        return _in_turn(list(module))
    if kind == "MbConvLNBlock":
        return [_residual(module)]
    if type(module) is nn.Conv2d:
        return [_convolution(module)]
    if type(module) is nn.AvgPool2d:
        return [_average(module)]
    if kind in ("LayerNorm2d", "LayerNormAct2d") and is_norm(module):
        norm = StemStep("norm", eps=float(module.eps)), _own(affine(module, "norm"))
        return [norm, *_read(getattr(module, "act", None))]
    if kind in ("GELU", "GELUTanh"):
        return [(StemStep("gelu_tanh" if activation_of(module) == "gelu_tanh" else "gelu"), {})]
    raise UnsupportedEncoderError(f"a convolutional stem with {kind} is not supported")


def _in_turn(modules: Sequence[Any]) -> list[Part]:
    parts: list[Part] = []
    for module in modules:
        if not isinstance(module, nn.BatchNorm2d):
            parts += _read(module)
        elif not parts or parts[-1][0].kind != "conv":
            raise UnsupportedEncoderError("a BatchNorm behind no convolution is not supported")
        else:
            parts[-1] = parts[-1][0], _folded(parts[-1][1], module)
            parts += _read(getattr(module, "act", None))
    return parts


def _own(weights: Weights) -> Weights:
    """`weight` and `bias`, without a name in front."""
    return {name.rsplit(".", 1)[1]: value for name, value in weights.items()}


def _folded(conv: Weights, norm: nn.BatchNorm2d) -> Weights:
    """A convolution with the BatchNorm behind it, as it is at inference: exact."""
    if norm.running_mean is None or norm.running_var is None or norm.weight is None:
        raise UnsupportedEncoderError("a BatchNorm without statistics or weights is not supported")
    gain = tensor(norm.weight).double() / torch.sqrt(tensor(norm.running_var).double() + norm.eps)
    weight = conv["weight"].double() * gain[:, None, None, None]
    bias = (conv["bias"].double() - tensor(norm.running_mean).double()) * gain
    return {"weight": weight.float(), "bias": (bias + tensor(norm.bias).double()).float()}


def _residual(block: Any) -> Part:
    body, weights = _collected(_in_turn([getattr(block, name) for name in MBCONV]))
    shortcut, more = _collected(_read(block.shortcut))
    named = {f"body.{name}": value for name, value in weights.items()}
    named |= {f"shortcut.{name}": value for name, value in more.items()}
    return StemStep("residual", body=body, shortcut=shortcut), named


def _convolution(conv: nn.Conv2d) -> Part:
    if conv.dilation != (1, 1) or conv.padding_mode != "zeros":
        raise UnsupportedEncoderError("a dilated or mirrored convolution is not supported")
    step = StemStep(
        "conv",
        channels=conv.out_channels,
        kernel=_square(conv.kernel_size),
        stride=_square(conv.stride),
        padding=_square(conv.padding),
        groups=conv.groups,
    )
    return step, _own(affine(conv, "conv"))


def _average(pool: nn.AvgPool2d) -> Part:
    if pool.ceil_mode or pool.divisor_override or (pool.padding and pool.count_include_pad):
        raise UnsupportedEncoderError("average pooling that counts its padding is not supported")
    sizes = (pool.kernel_size, pool.stride, pool.padding)
    kernel, stride, padding = (_square(size) for size in sizes)
    return StemStep("avg_pool", kernel=kernel, stride=stride, padding=padding), {}


def _square(size: Any) -> int:
    sides = set(size) if isinstance(size, tuple) else {size}
    if len(sides) != 1 or not all(isinstance(side, int) for side in sides):
        raise UnsupportedEncoderError(f"a window of {size} in the stem is not supported")
    return int(sides.pop())
