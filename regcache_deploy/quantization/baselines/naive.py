"""`naive`: static ranges, per-tensor symmetric activations, per-output-channel weights."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from ...encoders.canonical import Encoder
from ..histogram import Observer, check_observer, symmetric_limit
from ..quantizers import Bits, Uniform, symmetric_weight
from ..simulate import LinearQuantization, Quantization
from .base import Baseline, BlockRecord, BlockResult, Form


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
        linears, warnings = {}, []
        for name, x in record.inputs.items():
            limit = symmetric_limit(x, self.observer, self.bits.activation)
            if limit == 0:
                warnings.append(f"the input of {name} is zero on every calibration image")
            linears[name] = LinearQuantization(
                input=Uniform.symmetric(limit, self.bits.activation),
                weight=symmetric_weight(encoder.weights[f"{name}.weight"], self.bits.weight),
            )
        return BlockResult(Quantization(linears), warnings=tuple(warnings))
