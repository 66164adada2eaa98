"""Quantizers as they were published, for a graph that computes exactly what a paper says.

No INT8 runtime has them as one operator; `graph.published_products` builds each from standard ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from .errors import BundleError
from .json_types import check_fields
from .tensor_quant import TensorQuant

Array = npt.NDArray[Any]

Kind = Literal["uniform", "twin_gelu", "twin_softmax", "log_sqrt2"]

CONTAINER_BITS = 8

HALVES = ("lower", "upper")
"""Of a twin, in the names of its nodes and constants."""

LEVELS = "/levels"
"""Suffix of a tensor that has no integer codes: multiples of the step in float."""

CODE_TENSORS = {
    "": "/QuantizeLinear",
    "/Less": "/Less",
    "/lower": "/lower/QuantizeLinear",
    "/upper": "/upper/QuantizeLinear",
    LEVELS: "/levels/Clip",
    "/codes": "/Cast",
}
"""What a quantizer `NAME` makes of its input -> the node that gives it out, both behind `NAME`:
codes of Q/DQ; which half of a twin softmax; codes of the halves; levels where the zero point is no
code; codes of log-sqrt2. In the graph's order."""


@dataclass(frozen=True)
class PublishedQuant:
    """One quantizer; a twin has two halves of `2**(bits-1)` codes each.

    Attributes:
        kind: `uniform`: `s (clip(round(x / s) + z) - z)`, where z need not be an integer or a code;
            `twin_gelu`: step `second` below zero and `scale` above (PTQ4ViT, section 3.1);
            `twin_softmax`: step `second` below `second * 2**(bits-1)` and `scale` above (as above);
            `log_sqrt2`: levels `scale * 2**(-code/2)` and zero (RepQ-ViT, section 3.3).
        scale: float32 `[1]`, or `[C]` along axis 0 of a weight.
        zero_point: float32, same shape; 0 but for `uniform`.
        second: float32 `[1]`; 0 but for twins.
        bits: width of the code.
        signed: of `uniform`: codes from `-2**(bits-1)`, else from 0.
    """

    kind: Kind
    scale: Array
    zero_point: Array
    second: Array
    bits: int
    signed: bool = True

    @property
    def standard(self) -> TensorQuant | None:
        """The same as QuantizeLinear and DequantizeLinear, or None where those cannot."""
        low = -(2 ** (self.bits - 1)) if self.signed else 0
        inside = (self.zero_point >= low) & (self.zero_point < low + 2**self.bits)
        whole = self.zero_point == np.rint(self.zero_point)
        if self.kind != "uniform" or self.bits > CONTAINER_BITS or not (inside & whole).all():
            return None
        return TensorQuant(
            scale=self.scale,
            zero_point=self.zero_point.astype(np.int32),
            bits=self.bits,
            signed=self.signed,
            per_channel=self.scale.size > 1,
        )

    def offsets(self, name: str) -> dict[str, int]:
        """Tensors of `CODE_TENSORS` that it makes -> what is subtracted to give levels."""
        if self.standard is not None:
            return {name: 0 if self.signed else 2 ** (self.bits - 1)}
        if self.kind == "uniform":
            return {name + LEVELS: 0}
        if self.kind == "log_sqrt2":
            return {f"{name}/codes": 0}
        choice = {f"{name}/Less": 0} if self.kind == "twin_softmax" else {}
        return choice | {f"{name}/{half}": 0 for half in HALVES}

    @property
    def halves(self) -> tuple[TensorQuant, TensorQuant]:
        """Quantizers of the lower and the upper half of a twin."""
        zero = np.zeros(1, np.int32)
        return TensorQuant(self.second, zero, self.bits), TensorQuant(self.scale, zero, self.bits)

    @property
    def split(self) -> np.float32:
        """Where the upper half of `twin_softmax` begins."""
        return np.float32(self.second[0] * 2 ** (self.bits - 1))

    def levels(self) -> Array:
        """Values of the codes of `log_sqrt2`, the last one zero; float32.

        At most `2**bits + 1`. What is smaller than the least normal number of float32 is zero,
        too: there kernels differ, and products take many times as long.
        """
        codes = np.arange(2**self.bits)
        odd = np.where(codes % 2, np.float32(np.sqrt(2)), np.float32(1))
        values = self.scale[0] * odd * np.exp2(-np.ceil(codes / 2)).astype(np.float32)
        values = values.astype(np.float32)
        levels: Array = np.append(values[values >= np.finfo(np.float32).tiny], np.float32(0))
        return levels

    def save(self, tensors: dict[str, Array], key: str) -> dict[str, Any]:
        """Put the arrays under `key/...` into `tensors`; returns what is no tensor."""
        for name in ("scale", "zero_point", "second"):
            tensors[f"{key}/{name}"] = getattr(self, name).astype(np.float32)
        return {"kind": self.kind, "bits": self.bits, "signed": self.signed}

    @classmethod
    def load(cls, tensors: Mapping[str, Array], key: str, data: Any) -> PublishedQuant:
        """Inverse of `save`. Raises BundleError for fields or types that do not belong."""
        names = ("scale", "zero_point", "second")
        check_fields(f"the published quantizer {key}", data, cls, absent=names)
        scale, zero_point, second = (tensors[f"{key}/{name}"] for name in names)
        return cls(scale=scale, zero_point=zero_point, second=second, **data)

    def check(self, what: str) -> None:
        """Raise BundleError where no graph could be written from it."""
        if self.kind not in get_args(Kind):
            raise BundleError(f"{what} is of kind '{self.kind}', which no graph has")
        if self.scale.ndim != 1 or self.scale.shape != self.zero_point.shape:
            raise BundleError(f"{what} has scale and zero point of different shapes")
        steps = [self.scale, self.second] if self.kind.startswith("twin") else [self.scale]
        for step in steps:
            if not (np.isfinite(step).all() and (step > 0).all()):
                raise BundleError(f"{what} has a step that is not a positive number")
        if not np.isfinite(self.zero_point).all() or not 2 <= self.bits <= CONTAINER_BITS:
            raise BundleError(f"{what} has an impossible zero point or width")
