"""Percentile clipping on top of any baseline: the control that shrinks ranges without RegCache."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..encoders.canonical import Encoder
from ..quantization.baselines import Baseline
from ..quantization.baselines.base import BlockRecord, BlockResult
from ..quantization.observers import upper_quantiles

CLIPPING_PERCENTILE = 0.9999
"""Of |x| over a whole layer input."""


def clip_range(x: Tensor, percentile: float = CLIPPING_PERCENTILE) -> Tensor:
    """`x` of any shape, clamped to the percentile of its own magnitude."""
    limit = upper_quantiles(x.abs().reshape(1, -1), (percentile,)).item()
    return x.clamp(-limit, limit)


class Clipped(Baseline):
    """A baseline that sets its ranges on clipped layer inputs.

    Activations that the calibration passes on stay as they are in a parallel baseline; a
    sequential one passes on the quantized, so clipped, ones, as its deployed graph does.
    """

    def __init__(self, inner: Baseline, percentile: float = CLIPPING_PERCENTILE) -> None:
        super().__init__(inner.bits, inner.form)
        self.inner, self.percentile = inner, percentile
        self.like(inner)

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.inner.name

    @property
    def sequential(self) -> bool:  # type: ignore[override]
        return self.inner.sequential

    def prepare(self, *arguments: Any) -> Any:
        return self.inner.prepare(*arguments)

    def record(self) -> BlockRecord:
        record = self.inner.record()
        original = record.linear

        def linear(name: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            clipped = clip_range(x, self.percentile)
            if self.sequential:
                return original(name, clipped, weight, bias)
            y = original(name, x, weight, bias)
            record.inputs[name] = clipped
            return y

        record.linear = linear  # type: ignore[method-assign]
        return record

    def calibrate_block(
        self,
        index: int,
        encoder: Encoder,
        record: BlockRecord,
        register: Tensor | None,
        context: Any,
    ) -> BlockResult:
        return self.inner.calibrate_block(index, encoder, record, register, context)
