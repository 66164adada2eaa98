"""`naive`: static ranges, per-tensor symmetric activations, per-output-channel weights."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from ...encoders.canonical import Encoder
from ..histogram import Observer, check_observer, symmetric_limit
from ..quantizers import Bits, Uniform, symmetric_weight
from ..simulate import Quantization
from ..treatment_search import Pair, Score
from .base import Baseline, BlockRecord, BlockResult, Form
from .smoothed import smoothed_block


class Naive(Baseline):
    """Round to nearest; its paper form, with min-max ranges, and its deployed form are equal.

    `streaming.calibrate_stream` is the same over any number of images in constant memory.
    """

    name: ClassVar[str] = "naive"

    def __init__(
        self, bits: Bits | None = None, form: Form = "deploy", observer: Observer = "minmax"
    ) -> None:
        """`observer` sets the range of every activation; RegCache's paper takes `minmax`."""
        super().__init__(bits, form)
        check_observer(observer)
        self.observer: Observer = observer

    def calibrate_block(
        self,
        index: int,
        encoder: Encoder,
        record: BlockRecord,
        register: Tensor | None,
        context: Any,
    ) -> BlockResult:
        linears, factors, warnings = {}, {}, []
        for name, x in record.inputs.items():
            if not x.any():
                warnings.append(f"the input of {name} is zero on every calibration image")
            weight, bias = (encoder.weights[f"{name}.{part}"] for part in ("weight", "bias"))
            chosen = record.chooser.choose(name, x, weight, bias, self._quantizers)
            linears[name] = chosen.layer
            if chosen.factors is not None:
                factors[name] = chosen.factors
        result = BlockResult(Quantization(linears), warnings=tuple(warnings))
        return smoothed_block(encoder, index, result, factors, register)

    def _quantizers(self, x: Tensor, weight: Tensor, score: Score) -> Pair:
        limit = symmetric_limit(x, self.observer, self.bits.activation)
        return (
            Uniform.symmetric(limit, self.bits.activation),
            symmetric_weight(weight, self.bits.weight),
        )
