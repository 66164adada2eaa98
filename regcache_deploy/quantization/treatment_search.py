"""The search for a linear's treatment, by the error of its output on the calibration images.

Every candidate is quantized by the baseline's own rule on the treated input, and compared with
floating point. What costs nothing at run time wins where it is better; what leaves operators in the
graph must at least halve an error that is worth it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from regcache_export.passes.smoothing import FOLDED_ROLES
from regcache_export.treated import FLOAT_CHANNEL_ROLES

from ..work.devices import wide
from .output_error import OutputError, Reading
from .quantizers import Quantizer, Uniform
from .simulate import LinearQuantization
from .treated_input import UNTREATED, TreatedInput
from .treatment import Treatment

WORTH = 0.5
"""Most of the error that a candidate with a run-time cost may leave, to be worth it."""

HARMLESS = 2e-4
"""Relative squared error of an 8-bit linear that is not worth an operator: linears without
outliers leave 2e-5 to 2e-4. Each bit less counts four times as much."""

NEAR = 1.1
"""Errors of candidates with a cost that count as equal; the cheaper one wins."""

MAX_SHARE = 0.02
"""Largest share of a linear's channels in floating point."""

MAX_EXPONENT = 12
"""Factors lie within 2**-12 .. 2**12: float16 holds them exactly."""

FLOOR = 1e-5
"""Least range of a channel, relative to the largest one's: a silent one must not blow up."""

Pair = tuple[Quantizer, Quantizer]

Score = Callable[[Quantizer, Quantizer], float]

Rule = Callable[[Tensor, Tensor, Score], Pair]
"""A baseline's quantizers of one linear, from its input `[B, N, C]`, its weight `[C_out, C]` and
the output error of a pair of quantizers."""


@dataclass(frozen=True)
class Chosen:
    """A linear's quantizers, behind a fold where there is one.

    Attributes:
        layer: for input and weight after the fold.
        factors: `[C_in]` for `passes.Smoothing`, or None.
    """

    layer: LinearQuantization
    factors: Tensor | None = None

    def folded(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Input and weight after the fold."""
        if self.factors is None:
            return x, weight
        factors = self.factors.to(x)
        return x / factors, weight * factors


@dataclass(frozen=True)
class Chooser:
    """Chooses the treatment of each linear of an encoder.

    Attributes:
        treatment: what may be chosen.
        reading: whose error counts.
        keep_float: linears that are not quantized, and so need no treatment.
        kept: treatments that are settled already, by linear; None searches.
    """

    treatment: Treatment = field(default_factory=Treatment)
    reading: Reading = field(default_factory=Reading)
    keep_float: Collection[str] = ()
    kept: Mapping[str, TreatedInput] | None = None

    def choose(
        self,
        name: str,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        rule: Rule,
        trial: Rule | None = None,
    ) -> Chosen:
        """Quantizers of one linear, and how its input is treated.

        Args:
            name: of the linear.
            x: input `[B, N, C_in]`.
            weight, bias: `[C_out, C_in]`, `[C_out]`.
            rule: the baseline's.
            trial: a cheaper rule to compare candidates with; the winner still has to beat the
                untreated linear under `rule`.
        """
        case = _Case(name, x, weight, bias, self.reading)
        if self.kept is not None:
            return Chosen(case.fit(self.kept.get(name, UNTREATED), rule))
        free, costly = self._candidates(name, x, weight)
        if not free and not costly:
            return Chosen(case.fit(UNTREATED, rule))
        won = case.best(free, costly, trial or rule)
        if trial is not None:
            first, second = ([won], []) if won in free else ([], [won])
            won = case.best(first, second, rule) if won else won
        if won in free:
            # the fold takes the factors out of the input, and the quantizers stay
            layer, multiplier = case.fit(won, rule), won.multiplier
            assert multiplier is not None
            return Chosen(LinearQuantization(layer.input, layer.weight), 1 / multiplier)
        return Chosen(case.fit(won, rule))

    def _candidates(
        self, name: str, x: Tensor, weight: Tensor
    ) -> tuple[list[TreatedInput], list[TreatedInput]]:
        """Those without and those with a run-time cost, the cheapest first."""
        settings, role = self.treatment, name.split(".", 2)[2]
        largest = x.abs().flatten(0, -2).amax(0)
        if settings.is_empty or name in self.keep_float or not largest.any():
            return [], []
        smoothed = []
        if role.rsplit(".", 1)[-1] in settings.smooth:
            for alpha in settings.alphas:
                factors = smoothing_factors(largest, weight.abs().amax(0), alpha)
                if (factors != 1).any():
                    smoothed.append(TreatedInput(multiplier=1 / factors))
        split = []
        if role in FLOAT_CHANNEL_ROLES:
            count = min(settings.float_channels, int(MAX_SHARE * len(largest)))
            order = largest.argsort(descending=True, stable=True)
            split = [
                TreatedInput(float_channels=order[: c + 1].sort().values) for c in range(count)
            ]
        return (smoothed, split) if role in FOLDED_ROLES else ([], smoothed + split)


@dataclass
class _Case:
    """One linear under search; each candidate is fitted once per rule."""

    name: str
    x: Tensor
    weight: Tensor
    bias: Tensor
    reading: Reading
    fitted: dict[tuple[int, int], tuple[TreatedInput, LinearQuantization]] = field(
        default_factory=dict
    )

    @cached_property
    def error(self) -> OutputError:
        return OutputError(self.name, self.x, self.weight, self.bias, self.reading)

    def fit(self, treated: TreatedInput, rule: Rule) -> LinearQuantization:
        """The rule's quantizers on the treated input."""
        key = id(treated), id(rule)
        if key not in self.fitted:

            def score(input_: Quantizer, weight: Quantizer) -> float:
                return self.error(LinearQuantization(input_, weight, treated))

            seen = treated.ranged(treated.input(self.x))
            rows = treated.ranged(treated.weight(self.weight))
            layer = LinearQuantization(*rule(seen, rows, score), treated)
            self.fitted[key] = treated, layer  # holds the candidate, so that its id stays its own
        return self.fitted[key][1]

    def best(
        self, free: list[TreatedInput], costly: list[TreatedInput], rule: Rule
    ) -> TreatedInput:
        """The candidate to take, or `UNTREATED`."""
        won, least = UNTREATED, self.error(self.fit(UNTREATED, rule))
        for candidate in free:
            if (found := self.error(self.fit(candidate, rule))) < least:
                won, least = candidate, found
        if not costly or least <= self._harmless(rule):
            return won
        errors = [self.error(self.fit(candidate, rule)) for candidate in costly]
        if min(errors) <= WORTH * least:
            first = next(i for i, found in enumerate(errors) if found <= NEAR * min(errors))
            won = costly[first]
        return won

    def _harmless(self, rule: Rule) -> float:
        layer = self.fit(UNTREATED, rule)
        widths = [q.bits for q in (layer.input, layer.weight) if isinstance(q, Uniform)]
        return float(HARMLESS * 4 ** (8 - min(widths, default=8)))


def smoothing_factors(largest: Tensor, weight: Tensor, alpha: float) -> Tensor:
    """`largest**alpha / weight**(1 - alpha)` around a median of 1, as powers of two.

    Args:
        largest: `[C]`, greatest |x| of every input channel.
        weight: `[C]`, greatest |w| of every column.
        alpha: 0 evens the weight's columns out, 1 the input's channels.

    Returns:
        float32 `[C]`; 1 where a channel is silent.
    """
    x, w = (v.to(wide(v)) for v in (largest, weight))
    heard = x > 0
    if not heard.any() or not w.any():
        return torch.ones_like(largest, dtype=torch.float32)
    x, w = x.clamp_min(FLOOR * x.max()), w.clamp_min(FLOOR * w.max())
    exponents = alpha * torch.log2(x) - (1 - alpha) * torch.log2(w)
    exponents = (exponents - exponents[heard].median()).round()
    exponents = exponents.clamp(-MAX_EXPONENT, MAX_EXPONENT).where(heard, 0)
    return torch.exp2(exponents).float()
