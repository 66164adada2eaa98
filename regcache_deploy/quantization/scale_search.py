"""Search of quantizer parameters by the weighted error of a layer's output (PTQ4ViT)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..work.devices import wide
from .quantizers import MIN_SCALE, Quantizer, Uniform
from .simulate import LinearQuantization

ROWS_PER_PART = 256
"""Token rows per step of a score: few enough to stop early, enough for a fast GEMM."""


def symmetric(bits: int, largest: Tensor, fraction: float) -> Uniform:
    """`fraction` of PTQ4ViT's first scale `largest / (2**(bits-1) - 0.5)`, zero point 0."""
    scale = (largest.to(torch.float32) * (fraction / (2 ** (bits - 1) - 0.5))).clamp_min(MIN_SCALE)
    return Uniform(scale, torch.zeros_like(scale), bits, signed=True)


def least(
    candidates: Sequence[float], near: float, error: Callable[[float, float], float]
) -> float:
    """The candidate of least error; where errors are equal, the one closest to `near`.

    Args:
        candidates: to choose from.
        near: where to begin, since good candidates make the bound tight.
        error: from a candidate and the least error so far to its error.
    """
    order = sorted(candidates, key=lambda candidate: (abs(candidate - near), candidate))
    best, lowest = order[0], float("inf")
    for candidate in order:
        found = error(candidate, lowest)
        if found < lowest:
            best, lowest = candidate, found
    return best


class WeightedProduct:
    """Weighted squared error of a matrix product whose operands are quantized.

    Attributes:
        left: left operand in parts, each `[..., r, C_in]`.
        right: right operand in as many parts, each `[..., C_in, C_out]`.
    """

    def __init__(self, left: Sequence[Tensor], right: Sequence[Tensor], weights: Tensor) -> None:
        """`weights` has the shape of the product of all parts, joined along the first axis."""
        self.left, self.right = left, right
        self._reference = [a @ b for a, b in zip(left, right, strict=True)]
        split = weights.split([len(part) for part in left])
        self._root = [part.to(a.dtype).sqrt() for part, a in zip(split, left, strict=True)]

    def error(
        self,
        left: Callable[[int], Tensor],
        right: Callable[[int], Tensor],
        bound: float,
        columns: slice = slice(None),
    ) -> float:
        """Sum of `weight * (O_q - O)**2`; stops and returns infinity once it reaches `bound`.

        Args:
            left: from the number of a part to its quantized left operand.
            right: likewise for the right operand.
            bound: error of the best candidate so far. Most candidates are far off and end after
                the first part; the winner is the same as without the bound.
            columns: output columns that `right` holds.
        """
        total = 0.0
        for part, (reference, root) in enumerate(zip(self._reference, self._root, strict=True)):
            residual = left(part) @ right(part)
            residual.sub_(reference[..., columns]).mul_(root[..., columns])
            total += float(residual.square_().sum(dtype=wide(residual)))
            if not total < bound:
                return float("inf")
        return total

    def search_left(
        self,
        make: Callable[[float], Quantizer],
        grid: Sequence[float],
        near: float,
        other: Quantizer | None,
    ) -> float:
        """The best parameter of the left quantizer; the right operand goes through `other`."""
        right = [other(part) for part in self.right] if other else self.right

        def error(value: float, bound: float) -> float:
            quantizer = make(value)
            return self.error(lambda i: quantizer(self.left[i]), right.__getitem__, bound)

        return least(grid, near, error)

    def search_right(
        self,
        make: Callable[[float], Quantizer],
        grid: Sequence[float],
        near: float,
        other: Quantizer,
    ) -> float:
        """The best parameter of the right quantizer; the left operand goes through `other`."""
        left = [other(part) for part in self.left]

        def error(value: float, bound: float) -> float:
            quantizer = make(value)
            return self.error(left.__getitem__, lambda i: quantizer(self.right[i]), bound)

        return least(grid, near, error)


@dataclass(frozen=True)
class Searched:
    """A quantizer to be searched.

    Attributes:
        make: from one number per grid to the quantizer; all 1.0 covers the largest values.
        grids: candidates of every parameter.
    """

    make: Callable[..., Quantizer]
    grids: tuple[Sequence[float], ...]


class LinearSearch:
    """The scales of one linear layer."""

    def __init__(
        self,
        searched: Searched,
        x: Tensor,
        weight: Tensor,
        groups: int,
        bits: int,
        output_weights: Tensor,
        fractions: Sequence[float],
    ) -> None:
        """Begin at the scales that cover the largest values.

        Args:
            searched: input quantizer.
            x: sampled input rows `[R, C_in]`.
            weight: `[C_out, C_in]`.
            groups: equal parts of C_out with a scale each.
            bits: of the weight.
            output_weights: `[R, C_out]`.
            fractions: candidates for a weight scale.
        """
        self.searched, self.bits, self.fractions = searched, bits, fractions
        self.inputs = x.split(ROWS_PER_PART)
        self.weights = weight.chunk(groups)
        self.largest = [part.abs().max() for part in self.weights]
        self.product = WeightedProduct(self.inputs, [weight.T] * len(self.inputs), output_weights)
        self.weight_state, self.input_state = [1.0] * groups, [1.0] * len(searched.grids)

    def run(self, rounds: int) -> LinearQuantization:
        """At most `rounds` passes over weight and input; fewer where one would change nothing."""
        for number in range(rounds):
            before = list(self.weight_state), list(self.input_state)
            self.search_weight()
            if number and self.weight_state == before[0] and len(self.input_state) == 1:
                break
            self.search_input()
            if (self.weight_state, self.input_state) == before:
                break
        return LinearQuantization(self.searched.make(*self.input_state), self.weight_quantizer())

    def weight_quantizer(self) -> Uniform:
        """One scale per output channel, constant within a group."""
        scale = torch.cat(
            [
                symmetric(self.bits, largest, fraction).scale.expand(len(part), 1)
                for part, largest, fraction in zip(
                    self.weights, self.largest, self.weight_state, strict=True
                )
            ]
        )
        return Uniform(scale, torch.zeros_like(scale), self.bits, signed=True)

    def search_weight(self) -> None:
        """Every group's scale, with the input quantizer fixed. Groups do not see each other."""
        quantizer = self.searched.make(*self.input_state)
        inputs = [quantizer(part) for part in self.inputs]
        first = 0
        for group, weight in enumerate(self.weights):
            columns = slice(first, first + len(weight))
            make = partial(symmetric, self.bits, self.largest[group])
            error = partial(self._weight_error, inputs, weight, columns, make)
            self.weight_state[group] = least(self.fractions, self.weight_state[group], error)
            first += len(weight)

    def _weight_error(
        self,
        inputs: Sequence[Tensor],
        weight: Tensor,
        columns: slice,
        make: Callable[[float], Quantizer],
        fraction: float,
        bound: float,
    ) -> float:
        right = make(fraction)(weight).T
        return self.product.error(inputs.__getitem__, lambda _: right, bound, columns)

    def search_input(self) -> None:
        """Every parameter of the input quantizer in turn, with the weight fixed."""
        right = self.weight_quantizer()(torch.cat(self.weights)).T
        for axis, grid in enumerate(self.searched.grids):
            error = partial(self._input_error, right, axis)
            self.input_state[axis] = least(grid, self.input_state[axis], error)

    def _input_error(self, right: Tensor, axis: int, value: float, bound: float) -> float:
        state = [*self.input_state[:axis], value, *self.input_state[axis + 1 :]]
        quantizer = self.searched.make(*state)
        return self.product.error(lambda i: quantizer(self.inputs[i]), lambda _: right, bound)
