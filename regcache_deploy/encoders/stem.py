"""A convolutional stem's forward pass, always in floating point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor

from regcache_export.stem import StemStep


def run_stem(
    steps: Sequence[StemStep], weights: Mapping[str, Tensor], x: Tensor, name: str = "stem"
) -> Tensor:
    """Maps `[B, C, H, W]` through the steps, whose weights are named `NAME.I...`."""
    for index, step in enumerate(steps):
        x = _step(step, weights, x, f"{name}.{index}")
    return x


def _step(step: StemStep, weights: Mapping[str, Tensor], x: Tensor, name: str) -> Tensor:
    if step.kind == "residual":
        body = run_stem(step.body, weights, x, f"{name}.body")
        return body + run_stem(step.shortcut, weights, x, f"{name}.shortcut")
    if step.kind == "avg_pool":
        return F.avg_pool2d(
            x, step.kernel, step.stride, step.padding, ceil_mode=False, count_include_pad=False
        )
    if step.kind in ("gelu", "gelu_tanh"):
        return F.gelu(x, approximate="tanh" if step.kind == "gelu_tanh" else "none")
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    if step.kind == "norm":
        normed = F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), weight, bias, step.eps)
        return normed.permute(0, 3, 1, 2)
    return F.conv2d(x, weight, bias, step.stride, step.padding, groups=step.groups)
