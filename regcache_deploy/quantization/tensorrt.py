"""A calibration for TensorRT: attention operands in INT8, and scales that float16 holds exactly.

TensorRT knows no zero point. Linears keep their asymmetric codes all the same, by a shift at
export (`regcache_export.passes.centre_shift`), with two exceptions, which get a symmetric range
that covers the asymmetric one:

- out_proj behind quantized attention: its shift goes through the softmax, whose rows no longer
  sum to 1 once it is quantized;
- a linear whose shift would drown its result in float16: the product is rounded before the bias
  takes the shift's share away again. A sink's fc2 is such a one.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from regcache_export.checks.fusion import int8_attention_blocks

from ..encoders.regcache import RegCache
from ..errors import DataError
from ..work.devices import wide
from .observers import percentile_range
from .quantizers import Quantizer, Uniform
from .simulate import Calibration, LinearQuantization, Quantization, SimulatedNumerics

SOFTMAX_LARGEST = 1.0
BITS = 8


@torch.no_grad()
def for_tensorrt(calibration: Calibration, tokens: Tensor, attention: bool = True) -> Calibration:
    """The same calibration with what TensorRT needs.

    Args:
        calibration: in the form `deploy`, with every block quantized.
        tokens: `[B, N, D]` at the input of block 0, the calibration images.
        attention: quantize the attention products of the blocks in which INT8 attention fuses.

    Raises:
        DataError: no images, or NaN in attention.
    """
    if not len(tokens):
        raise DataError("calibration needs at least one image")
    encoder, regcache = calibration.encoder, calibration.regcache
    config = regcache.config if regcache else None
    blocks = int8_attention_blocks(encoder.spec, config, encoder.merge) if attention else []
    query_factor = encoder.spec.head_dim**-0.5
    linears = {
        name: _linear(name, layer, blocks, query_factor)
        for name, layer in calibration.quantization.linears.items()
    }
    observer = _Calibrator(Quantization(linears), blocks, encoder.spec.depth, regcache)
    ranges = regcache.for_ranges() if regcache else None
    encoder.run_blocks(tokens, numerics=observer, regcache=ranges)
    return replace(calibration, quantization=Quantization(observer.linears, observer.found))


def in_float16(scale: Tensor, factor: float | Tensor = 1.0) -> Tensor:
    """The float32 scale nearest to `scale` for which `scale * factor` is a float16 number.

    Never 0, so that a scale stays a divisor.
    """
    smallest = torch.finfo(torch.float16).smallest_normal * torch.finfo(torch.float16).eps
    half = (scale.double() * factor).clamp_min(smallest).to(torch.float16)
    return (half.double() / factor).float()


def shift_drowns(
    x: Tensor, weight: Tensor, bias: Tensor, layer: LinearQuantization, other: LinearQuantization
) -> bool:
    """Whether, in float16, the shift of a zero point costs more than a symmetric range.

    Both candidates are computed as the INT8 kernel does, the product rounded to float16 before the
    bias is added. Compared is the squared error of each token relative to its squared length, so
    that a sink does not outvote the others.

    Args:
        x: input `[..., C_in]`.
        weight, bias: `[C_out, C_in]`, `[C_out]` in floating point.
        layer: asymmetric.
        other: the symmetric candidate.
    """
    exact = F.linear(x, weight, bias)
    lengths = exact.square().sum(-1).clamp_min(1e-20)
    costs = []
    for candidate in (layer, other):
        quantizer, rows = candidate.input, candidate.weight(weight)
        assert isinstance(quantizer, Uniform)
        middle = 0 if quantizer.signed else 2 ** (quantizer.bits - 1)
        shift = (middle - quantizer.zero_point) * quantizer.scale
        product = F.linear(quantizer(x) - shift, rows).half().float()
        error = product + (bias + shift * rows.sum(1)) - exact
        costs.append((error.square().sum(-1) / lengths).mean())
    return bool(costs[0] > costs[1])


def _linear(
    name: str, layer: LinearQuantization, blocks: list[int], query_factor: float
) -> LinearQuantization:
    x, weight = layer.input, layer.weight
    if not isinstance(x, Uniform) or not isinstance(weight, Uniform):
        raise TypeError(f"{name} is not in the form 'deploy'")
    behind_int8 = name.endswith("attn.out_proj") and int(name.split(".")[1]) in blocks
    if behind_int8:
        x = _covering(x)
    factor: float | Tensor = 1.0
    if name.endswith("attn.qkv"):
        # the attention scale joins the scales of the query rows at export
        rows = weight.scale.numel()
        factor = weight.scale.new_ones(rows, 1, dtype=wide(weight.scale))
        factor[: rows // 3] = query_factor
    return replace(
        layer,
        input=replace(x, scale=in_float16(x.scale)),
        weight=replace(weight, scale=in_float16(weight.scale, factor)),
    )


def _covering(quantizer: Uniform) -> Uniform:
    """A symmetric quantizer over the larger side of another one's range."""
    if not _is_asymmetric(quantizer):
        return quantizer
    low, high = ((code - quantizer.zero_point) * quantizer.scale for code in quantizer.code_range)
    return Uniform.symmetric(torch.maximum(-low, high), quantizer.bits)


def _is_asymmetric(quantizer: Uniform) -> bool:
    return not quantizer.signed or bool(quantizer.zero_point.any())


class _Calibrator(SimulatedNumerics):
    """Settles each linear and each attention product at its call, behind those before it.

    The prefix is the same for every image, so its rows are never clipped; the percentile that
    costs least squared error decides for the image's own.
    """

    def __init__(
        self, quantization: Quantization, blocks: list[int], depth: int, regcache: RegCache | None
    ) -> None:
        super().__init__(quantization)
        self._blocks = set(blocks)
        self._prefix = {
            block: regcache.config.prefix_count
            for block in (regcache.config.prefix_blocks(depth) if regcache else ())
            if regcache
        }
        self.linears = dict(quantization.linears)
        self.found: dict[str, tuple[Quantizer, Quantizer]] = {}

    def linear(self, name: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        layer = self.linears.get(name)
        if layer is not None and isinstance(layer.input, Uniform) and _is_asymmetric(layer.input):
            other = replace(layer, input=_half(_covering(layer.input)))
            seen, rows = layer.treated.input(x), layer.treated.weight(weight)
            if shift_drowns(seen, rows, bias, layer, other):
                self.linears[name] = other
                self.quantization = Quantization(self.linears)
        return super().linear(name, x, weight, bias)

    def matmul(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        block = int(name.split(".")[1])
        if block not in self._blocks:
            return a @ b
        if not torch.isfinite(a).all() or not torch.isfinite(b).all():
            raise DataError(f"{name} holds NaN or infinite values on these images")
        count = self._prefix.get(block, 0)
        left: Uniform
        if name.endswith("qk"):
            prefix, own = b[..., :count], b[..., count:]
            left = _symmetric(a)
        else:
            prefix, own = b[..., :count, :], b[..., count:, :]
            left = _half(Uniform.symmetric(a.new_full((), SOFTMAX_LARGEST), BITS))
        right = _symmetric(own, at_least=prefix.abs().amax() if count else None)
        self.found[name] = left, right
        return left(a) @ right(b)


def _symmetric(x: Tensor, at_least: Tensor | None = None) -> Uniform:
    def make(low: Tensor, high: Tensor) -> Uniform:
        return Uniform.symmetric(torch.maximum(-low, high), BITS)

    low, high = percentile_range(x.reshape(1, -1), make)
    max_abs = torch.maximum(-low, high).squeeze()
    if at_least is not None:
        max_abs = torch.maximum(max_abs, at_least)
    return _half(Uniform.symmetric(max_abs, BITS))


def _half(quantizer: Uniform) -> Uniform:
    return replace(quantizer, scale=in_float16(quantizer.scale))
