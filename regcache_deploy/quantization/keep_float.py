"""Which few linears to leave in floating point, so that the rest keeps an accuracy budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class FloatChoice:
    """Outcome.

    Attributes:
        names: linears that stay in floating point.
        value: objective with them.
        within: whether the budget is met.
    """

    names: frozenset[str]
    value: float
    within: bool


def choose_float_layers(
    ranking: Sequence[str],
    score: Callable[[frozenset[str]], float],
    reference: float,
    budget: float,
) -> FloatChoice:
    """The fewest of the most sensitive linears, doubling the number until the budget holds.

    Then by bisection between the last two numbers; the loss is taken to fall with the number.

    Args:
        ranking: linears, most sensitive first.
        score: objective with these linears in floating point.
        reference: objective of the float model.
        budget: loss that is tolerated.
    """
    wanted = reference - budget

    def attempt(count: int) -> FloatChoice:
        names = frozenset(ranking[:count])
        value = score(names)
        return FloatChoice(names, value, value >= wanted)

    best, low, high = attempt(0), 0, 1
    if best.within:
        return best
    while True:
        best = attempt(high)
        if best.within or high == len(ranking):
            break
        low, high = high, min(2 * high, len(ranking))
    while best.within and high - low > 1:
        middle = (low + high) // 2
        found = attempt(middle)
        if found.within:
            best, high = found, middle
        else:
            low = middle
    return best
