"""`naive`: static min-max, per-tensor symmetric activations, per-output-channel weights."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from ...encoders.canonical import Encoder
from ..quantizers import Uniform, symmetric_weight
from ..simulate import LinearQuantization, Quantization
from .base import Baseline, BlockRecord, BlockResult


class Naive(Baseline):
    """Round to nearest with min-max ranges; its paper form and its deployed form are equal."""

    name: ClassVar[str] = "naive"

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
            max_abs = x.abs().max()
            if max_abs == 0:
                warnings.append(f"the input of {name} is zero on every calibration image")
            linears[name] = LinearQuantization(
                input=Uniform.symmetric(max_abs, self.bits.activation),
                weight=symmetric_weight(encoder.weights[f"{name}.weight"], self.bits.weight),
            )
        return BlockResult(Quantization(linears), warnings=tuple(warnings))
