"""The quantized encoder in simulation, and what a calibration hands over."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..encoders.canonical import FLOAT, Encoder, Numerics
from ..encoders.regcache import RegCache
from .integer_gemm import CodedWeight, coded_linear
from .quantizers import Quantizer, Uniform
from .treated_input import UNTREATED, TreatedInput

T = TypeVar("T")
M = TypeVar("M", Quantizer, TreatedInput)


@dataclass(frozen=True)
class LinearQuantization:
    """Quantizers of one linear layer: its input activation and its weight `[C_out, C_in]`.

    Both are those of the treated input and weight.
    """

    input: Quantizer
    weight: Quantizer
    treated: TreatedInput = UNTREATED


@dataclass(frozen=True)
class Quantization:
    """Quantizers by layer. What is absent stays in floating point.

    Attributes:
        linears: by layer name, e.g. `blocks.3.mlp.fc2`.
        matmuls: the two operands of `blocks.I.attn.qk` and `blocks.I.attn.pv`.
    """

    linears: dict[str, LinearQuantization] = field(default_factory=dict)
    matmuls: dict[str, tuple[Quantizer, Quantizer]] = field(default_factory=dict)

    def merge(self, other: Quantization) -> Quantization:
        """Both together; `other` wins where both know a layer."""
        return Quantization(self.linears | other.linears, self.matmuls | other.matmuls)

    def without(self, layers: Collection[str]) -> Quantization:
        """Some linears back in floating point."""
        kept = {name: layer for name, layer in self.linears.items() if name not in layers}
        return Quantization(kept, self.matmuls)

    def treatment_notes(self) -> dict[str, str]:
        """`LAYER.input` -> how it is treated, for the table of quantizers; none for the others."""
        notes = {f"{name}.input": q.treated.note() for name, q in self.linears.items()}
        return {name: note for name, note in notes.items() if note}

    def only(self, layer: str) -> Quantization:
        """Just one linear quantized, as the sensitivity analysis wants it."""
        return Quantization({layer: self.linears[layer]})


class SimulatedNumerics:
    """Numerics with fake quantization; quantized weights are computed once per layer.

    Where both quantizers are uniform, the product is taken over the integer codes and scaled
    afterwards, as an INT8 GEMM does (`integer_gemm.py`): the sum is exact, does not depend on its
    order, and the simulation does not round where the runtime does not.
    """

    def __init__(self, quantization: Quantization) -> None:
        self.quantization = quantization
        self._weights: dict[str, Any] = {}

    def linear(self, name: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        layer = self.quantization.linears.get(name)
        if layer is None:
            return FLOAT.linear(name, x, weight, bias)
        a, w, treated = layer.input, layer.weight, layer.treated
        if isinstance(a, Uniform) and isinstance(w, Uniform) and a.scale.numel() == 1:
            coded = self._once(name, lambda: CodedWeight.of(treated.weight(weight), w))
            y = coded_linear(treated.input(x), a, coded, bias)
        else:
            rows = self._once(name, lambda: w(treated.weight(weight)))
            y = F.linear(a(treated.input(x)), rows, bias)
        return treated.add_float(y, x, weight)

    def _once(self, name: str, quantize: Callable[[], T]) -> T:
        if name not in self._weights:
            self._weights[name] = quantize()
        kept: T = self._weights[name]
        return kept

    def matmul(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        operands = self.quantization.matmuls.get(name)
        if operands is None:
            return FLOAT.matmul(name, a, b)
        return operands[0](a) @ operands[1](b)


@dataclass(frozen=True)
class Calibration:
    """What a baseline found: an encoder after its exact folds, and the quantizers for it.

    Attributes:
        encoder: weights after folds (identical function in floating point).
        quantization: quantizers of the calibrated blocks.
        regcache: the choice it was calibrated with; its register went through the same folds.
        warnings: one line each, e.g. a constant activation that got a floor.
    """

    encoder: Encoder
    quantization: Quantization
    regcache: RegCache | None = None
    warnings: tuple[str, ...] = ()

    def to(self, device: torch.device | str) -> Calibration:
        """The same calibration on a device."""
        regcache = self.regcache
        if regcache is not None:
            register = {block: vector.to(device) for block, vector in regcache.register.items()}
            regcache = replace(regcache, register=register)
        quantization = Quantization(
            {
                name: LinearQuantization(*(moved(getattr(q, f.name), device) for f in fields(q)))
                for name, q in self.quantization.linears.items()
            },
            {
                name: (moved(left, device), moved(right, device))
                for name, (left, right) in self.quantization.matmuls.items()
            },
        )
        return replace(
            self, encoder=self.encoder.to(device), quantization=quantization, regcache=regcache
        )

    def numerics(self) -> Numerics:
        """Fresh simulated numerics; keep the object to reuse its quantized weights."""
        return SimulatedNumerics(self.quantization)


def moved(part: M, device: torch.device | str) -> M:
    """A quantizer or a treatment with its tensors on a device; UNTREATED stays what it is."""
    assert is_dataclass(part)
    tensors = {name: value for name, value in vars(part).items() if isinstance(value, Tensor)}
    if not tensors:
        return part
    return replace(part, **{name: value.to(device) for name, value in tensors.items()})
