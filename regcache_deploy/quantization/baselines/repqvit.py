"""`repqvit`: percentile ranges and scale reparametrization (RepQ-ViT).

Source: Li et al., "RepQ-ViT", arXiv 2212.08254, and its public code for the constants. What this
file leaves in float in both forms, and the publication does not: patch embedding and projection;
a calibration here starts from hidden states, and RegCache concerns the blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from regcache_export.passes import Reparametrization
from regcache_export.passes.reparametrization import NORMS

from ...encoders.canonical import Encoder
from ...errors import ConfigError
from ..encoder_folds import fold_block
from ..observers import affine, percentile_log_sqrt2, percentile_range
from ..output_error import range_by_output
from ..quantizers import Bits, Quantizer, Uniform
from ..reparametrize import LayerNormFold, reparametrize
from ..simulate import LinearQuantization, Quantization, SimulatedNumerics
from ..treatment_search import Pair, Score
from .base import Baseline, BlockRecord, BlockResult, Form, check_finite, check_scale
from .smoothed import smoothed_block

RangeRule = Literal["percentile", "output_error"]
"""`percentile`: RepQ-ViT's, by the squared error of the tensor itself, in which a class token is
one row in hundreds. `output_error`: that percentile, or the whole range, whose error at the
linear's output is least, with a class token's share in it (`output_error.py`)."""


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
    range_rule: RangeRule = "percentile"
    folds: dict[str, LayerNormFold] = field(default_factory=dict)
    factors: dict[str, Tensor] = field(default_factory=dict)
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
            layer = LinearQuantization(quantizer, self._weight(weight))
        else:
            chosen = self.chooser.choose(name, x, weight, bias, self._quantizers)
            x, weight = chosen.folded(x, weight)
            layer = chosen.layer
            if chosen.factors is not None:
                self.factors[name] = chosen.factors
        check_scale(name, layer.input)
        self.linears[name] = layer
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

    def _quantizers(self, x: Tensor, weight: Tensor, score: Score) -> Pair:
        deployed, rows = self.form == "deploy", self._weight(weight)
        if self.range_rule == "percentile":
            return self._per_tensor(x, deployed), rows
        make = partial(Uniform.asymmetric if deployed else affine, bits=self.bits.activation)
        return range_by_output(x, make, lambda quantizer: score(quantizer, rows)), rows

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

    def __init__(
        self,
        bits: Bits | None = None,
        form: Form = "deploy",
        range_rule: RangeRule = "percentile",
    ) -> None:
        """`range_rule` sets the range of every input without a range per channel.

        Raises:
            ConfigError: an unknown rule, or the paper form with another one than its own.
        """
        super().__init__(bits, form)
        if range_rule not in get_args(RangeRule):
            known = ", ".join(get_args(RangeRule))
            raise ConfigError(f"unknown range rule '{range_rule}'; take one of: {known}")
        if form == "paper" and range_rule != "percentile":
            raise ConfigError("the published form of repqvit sets its ranges by percentile")
        self.range_rule: RangeRule = range_rule
        self.reparametrize = True
        """False leaves the inputs of qkv and fc1 per tensor: `--no-fold reparametrization`."""

    def record(self) -> BlockRecord:
        return _Calibrator(
            bits=self.bits,
            form=self.form,
            reparametrize=self.reparametrize,
            keep_float=self.keep_float,
            range_rule=self.range_rule,
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
        weights, folded = fold_block(encoder, index, fold, register)
        result = BlockResult(
            Quantization(record.linears, record.matmuls),
            weights=weights,
            register=folded,
            warnings=tuple(record.warnings),
        )
        return smoothed_block(encoder, index, result, record.factors, register)


def _role(name: str) -> str:
    """`blocks.3.mlp.fc1` -> `mlp.fc1`."""
    return name.split(".", 2)[2]


def _symmetric(low: Tensor, high: Tensor, bits: int) -> Uniform:
    return Uniform.symmetric(torch.maximum(-low, high).clamp_min(0), bits)
