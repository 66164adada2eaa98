"""`repqvit`: percentile ranges and scale reparametrization (RepQ-ViT).

Source: Li et al., "RepQ-ViT", arXiv 2212.08254, and its public code for the constants. What this
file leaves in float in both forms, and the publication does not: patch embedding and projection;
a calibration here starts from hidden states, and RegCache concerns the blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from regcache_export.passes import Reparametrization
from regcache_export.passes.reparametrization import NORMS

from ...encoders.canonical import Encoder
from ..encoder_folds import fold_block
from ..folds import LayerNormFold, reparametrize
from ..observers import affine, percentile_log_sqrt2, percentile_range
from ..quantizers import Bits, Quantizer, Uniform
from ..simulate import LinearQuantization, Quantization, SimulatedNumerics
from .base import Baseline, BlockRecord, BlockResult, Form, check_finite, check_scale


@dataclass
class _Calibrator(BlockRecord):
    """Calibrates each layer of a block at its first call and answers with its quantized result.

    So each range is measured behind quantized layers, as in the publication. Its second pass,
    which recalibrates the weights after the reparametrization, is not needed: here a weight is
    calibrated after the fold of its own layer in the first place.
    """

    bits: Bits = field(default_factory=Bits)
    form: Form = "deploy"
    reparametrize: bool = True
    keep_float: frozenset[str] = frozenset()
    linears: dict[str, LinearQuantization] = field(default_factory=dict)
    matmuls: dict[str, tuple[Quantizer, Quantizer]] = field(default_factory=dict)
    folds: dict[str, LayerNormFold] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def linear(self, name: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        check_finite(name, x)
        if name in self.keep_float:
            return F.linear(x, weight, bias)
        if not x.any():
            self.warnings.append(f"the input of {name} is zero on every calibration image")
        if self.reparametrize and _role(name) in NORMS:
            quantizer = self._per_channel(name, x)
            x = self.folds[name].apply(x)
            weight, bias = self.folds[name].linear(weight, bias)
        else:
            quantizer = self._per_tensor(x, deployed=self.form == "deploy")
        check_scale(name, quantizer)
        self.linears[name] = LinearQuantization(quantizer, self._weight(weight))
        # the very arithmetic of the simulation, so that later layers are calibrated on its output
        simulated = SimulatedNumerics(Quantization({name: self.linears[name]}))
        return simulated.linear(name, x, weight, bias)

    def matmul(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        if self.form == "deploy":
            return a @ b
        right = self._per_tensor(b, deployed=False)
        left: Quantizer
        if name.endswith("attn.pv"):
            left = percentile_log_sqrt2(a, self.bits.activation)
        else:
            left = self._per_tensor(a, deployed=False)
        self.matmuls[name] = left, right
        return left(a) @ right(b)

    def _per_channel(self, name: str, x: Tensor) -> Uniform:
        make = partial(affine, bits=self.bits.activation)
        low, high = percentile_range(x.flatten(0, -2).T.contiguous(), make)
        result = reparametrize(
            low.squeeze(1), high.squeeze(1), self.bits.activation, centred=self.form == "deploy"
        )
        if result.constant.any():
            self.warnings.append(
                f"the input of {name} is constant in {int(result.constant.sum())} channels; "
                "their value moved into the bias"
            )
        self.folds[name] = result.fold
        return result.quantizer

    def _per_tensor(self, x: Tensor, deployed: bool) -> Uniform:
        make = partial(Uniform.asymmetric if deployed else affine, bits=self.bits.activation)
        low, high = percentile_range(x.reshape(1, -1), make)
        return make(low.squeeze(), high.squeeze())

    def _weight(self, weight: Tensor) -> Uniform:
        symmetric = self.form == "deploy"
        make = partial(_symmetric if symmetric else affine, bits=self.bits.weight)
        return make(*percentile_range(weight, make))


class RepQViT(Baseline):
    """Percentile ranges; per-channel inputs of qkv and fc1, folded into one scale each.

    The inputs of qkv and fc1 are quantized per channel and asymmetrically, and an exact fold into
    LayerNorm, linear and cached register makes that one scale and one zero point. Calibration is
    sequential: each layer sees what the quantized ones before it made.
    """

    name: ClassVar[str] = "repqvit"
    sequential: ClassVar[bool] = True
    differences: ClassVar[tuple[str, ...]] = (
        "qkv and fc1 inputs: mean zero point -> zero point 2**(bits-1), which as signed codes is "
        "symmetric, with the codes of per-channel asymmetric quantization",
        "weights: asymmetric -> symmetric, both per output channel by the same percentile search",
        "out_proj and fc2 inputs: the range is widened to hold 0, so that its zero point is a code",
        "q, k and v operands: per-tensor asymmetric -> float attention products",
        "post-softmax operand: log-sqrt2 -> float attention products",
    )

    def __init__(self, bits: Bits | None = None, form: Form = "deploy") -> None:
        super().__init__(bits, form)
        self.reparametrize = True
        """False leaves the inputs of qkv and fc1 per tensor: `--no-fold reparametrization`."""

    def record(self) -> BlockRecord:
        return _Calibrator(
            bits=self.bits,
            form=self.form,
            reparametrize=self.reparametrize,
            keep_float=self.keep_float,
        )

    def calibrate_block(
        self,
        index: int,
        encoder: Encoder,
        record: BlockRecord,
        register: Tensor | None,
        context: Any,
    ) -> BlockResult:
        assert isinstance(record, _Calibrator)
        fold = Reparametrization({name: f.channels for name, f in record.folds.items()})
        weights, register = fold_block(encoder, index, fold, register)
        return BlockResult(
            Quantization(record.linears, record.matmuls),
            weights=weights,
            register=register,
            warnings=tuple(record.warnings),
        )


def _role(name: str) -> str:
    """`blocks.3.mlp.fc1` -> `mlp.fc1`."""
    return name.split(".", 2)[2]


def _symmetric(low: Tensor, high: Tensor, bits: int) -> Uniform:
    return Uniform.symmetric(torch.maximum(-low, high).clamp_min(0), bits)
