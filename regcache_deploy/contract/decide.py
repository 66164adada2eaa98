"""The decision alone: given measurements, which file is kept and why. Nothing here measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from regcache_engines.errors import ConfigError

from ..bench.timing import Interval
from ..evaluation.paired import within
from ..work.format import digits_apart, ratio_text

INT8, UNMERGED, MIXED, FLOAT = "int8", "unmerged", "mixed", "float"
WAY, PLAIN_MIXED = "way", "mixed_plain"
"""Calibrated again: another way of the quantizer; the quantizer without RegCache, some linears in
float."""

MIN_ROUNDS = 8
"""Paired rounds below which an interval of a speed-up proves nothing: all of 8 fall on one side by
chance once in 128 times."""


@dataclass(frozen=True)
class Contract:
    """What a file must keep.

    Attributes:
        max_drop: accuracy that may be lost against the float file, in points.
        min_speedup: how many times faster than the float file it must be.
        strict: the 95 % intervals must keep it, not only the estimates.

    Raises:
        ConfigError: out of range.
    """

    max_drop: float = 0.5
    min_speedup: float = 1.02
    strict: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop <= 100:
            raise ConfigError(f"--max-drop {self.max_drop} is out of range: take points, 0 to 100")
        if not 0 < self.min_speedup <= 1000:
            raise ConfigError(f"--min-speedup {self.min_speedup} is out of range: take e.g. 1.02")


@dataclass(frozen=True)
class Drop:
    """What a file loses against the float file on the same images, in points; negative is a gain.

    Attributes:
        value, low, high: estimate and its 95 % interval: the bootstrap's over paired images; for
            classes at least as wide as the exact bounds of images lost and won.
        n: images.
        metric: `top1` (labels and a head), `changed` (images whose class changed: no labels, so an
            upper bound of the loss), or `cosine` (100 times one minus the mean cosine: no head).
    """

    value: float
    low: float
    high: float
    n: int
    metric: str


@dataclass(frozen=True)
class Measured:
    """A candidate with its figures.

    Attributes:
        form: `int8`, `unmerged` (the same where no token is merged), `mixed`, `way`, `mixed_plain`
            or `float`.
        drop: against the float file.
        speedup: over the float file.
        float_layers: linears in float, of a mixed file.
        way: name of the way, where it is another one than the exported.
    """

    form: str
    drop: Drop
    speedup: Interval
    float_layers: tuple[str, ...] = ()
    way: str = ""


@dataclass(frozen=True)
class Skipped:
    """A candidate that is refused before its figures, with the reason.

    Attributes:
        form: as in `Measured`.
        reason: one sentence.
        float_layers, way: as there.
    """

    form: str
    reason: str
    float_layers: tuple[str, ...] = ()
    way: str = ""


Attempt = Callable[[], Measured | Skipped]


@dataclass(frozen=True)
class Verdict:
    """What a contract says of one candidate.

    Attributes:
        keep: it keeps the contract.
        reasons: one sentence a figure.
        proven: the whole 95 % intervals keep it, too.
    """

    candidate: Measured | Skipped
    keep: bool
    reasons: tuple[str, ...]
    proven: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self.candidate) | {
            "keep": self.keep,
            "proven": self.proven,
            "reasons": list(self.reasons),
        }


@dataclass(frozen=True)
class Decision:
    """The first candidate that keeps the contract, and all that were tried before it."""

    contract: Contract
    verdicts: tuple[Verdict, ...]

    @property
    def kept(self) -> Measured:
        last = self.verdicts[-1].candidate
        assert isinstance(last, Measured)
        return last

    def to_json(self) -> dict[str, Any]:
        return {
            "kept": self.kept.form,
            "proven": self.verdicts[-1].proven,
            "contract": asdict(self.contract),
            "tried": [verdict.to_json() for verdict in self.verdicts],
        }


def judge(candidate: Measured | Skipped, contract: Contract) -> Verdict:
    """Hold one candidate against the contract."""
    if isinstance(candidate, Skipped):
        return Verdict(candidate, False, (candidate.reason,), False)
    if candidate.form == FLOAT:
        return Verdict(candidate, True, ("the float file is the fallback: it loses nothing",), True)
    drop, speed = candidate.drop, candidate.speedup
    limit = contract.max_drop
    accurate, surely_accurate = within(drop.value, limit), within(drop.high, limit)
    fast = speed.value >= contract.min_speedup
    surely_fast = speed.low >= contract.min_speedup and speed.rounds >= MIN_ROUNDS
    ratio, _, interval = ratio_text(asdict(speed), least=contract.min_speedup).partition(" ")
    reasons = (
        _sentence(
            *_loss_words(drop, limit),
            accurate,
            surely_accurate,
            contract.strict,
        ),
        _sentence(
            f"{ratio} times as fast {interval}"
            + (f" in {speed.rounds} rounds only" if speed.rounds < MIN_ROUNDS else ""),
            f"of at least {contract.min_speedup:g}",
            fast,
            surely_fast,
            contract.strict,
        ),
    )
    proven = surely_accurate and surely_fast
    return Verdict(candidate, proven if contract.strict else accurate and fast, reasons, proven)


def _loss_words(drop: Drop, limit: float) -> tuple[str, str]:
    """The loss and its bound; of features, which have no accuracy, as the cosine that it is."""
    if drop.metric == "cosine":
        figure = f"cosine to the float file {loss_text(asdict(drop), limit)}"
        return figure, f"of at least {1 - limit / 100:.5f}"
    if drop.value < 0:
        digits = _loss_digits(asdict(drop), limit)
        gain, low, high = (f"{-end:.{digits}f}" for end in (drop.value, drop.high, drop.low))
        return f"gains {gain} points [{low}, {high}]", f"a loss of at most {limit:g} is allowed"
    value, _, interval = loss_text(asdict(drop), limit).partition(" ")
    return f"loses {value} points {interval}", f"of at most {limit:g}"


def loss_text(drop: Mapping[str, Any], limit: float) -> str:
    """What is lost with its interval: points, or the cosine that is left of features.

    With as many digits as tell on which side of the limit each figure is.
    """
    digits, ends = _loss_digits(drop, limit), [drop[end] for end in ("value", "low", "high")]
    if drop["metric"] == "cosine":
        digits, ends = digits + 2, [1 - drop[end] / 100 for end in ("value", "high", "low")]
    value, low, high = (f"{end:.{digits}f}" for end in ends)
    return f"{value} [{low}, {high}]"


def _loss_digits(drop: Mapping[str, Any], limit: float) -> int:
    """Of points; a cosine has two more, as it is a hundredth of them."""
    ends = [drop[end] for end in ("value", "low", "high")]
    return digits_apart(
        ends, lambda shown: within(shown, limit), 3 if drop["metric"] == "cosine" else 2
    )


def decide(attempts: Sequence[Attempt], contract: Contract) -> Decision:
    """Try candidates in order; what comes behind the first good one is never measured.

    Args:
        attempts: the last one gives the float file, which is always kept.
        contract: the budget.

    Raises:
        ValueError: no candidate was kept, so the last one was not the float file.
    """
    verdicts = []
    for attempt in attempts:
        verdicts.append(judge(attempt(), contract))
        if verdicts[-1].keep:
            return Decision(contract, tuple(verdicts))
    raise ValueError("the last candidate must be the float file")


def _sentence(figure: str, bound: str, holds: bool, surely: bool, strict: bool) -> str:
    if holds and surely:
        return f"{figure}, {bound}: kept"
    if not holds:
        return f"{figure}, {bound}: not kept"
    tail = "not kept under --strict" if strict else "kept by the estimate, not by the interval"
    return f"{figure}, {bound}: {tail}"
