"""Float arithmetic that shows every linear's input to somebody."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .canonical import FloatNumerics

See = Callable[[str, Tensor], None]
"""Called with a linear's name and its input `[B, N, C_in]`."""


class Watched(FloatNumerics):
    """Plain floating point; `see` is told of every linear, in the order in which they run."""

    def __init__(self, see: See) -> None:
        self.see = see

    def linear(self, name: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        self.see(name, x)
        return super().linear(name, x, weight, bias)
