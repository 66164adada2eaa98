"""What a search hands back."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..encoders.regcache import RegCacheConfig
from ..evaluation import Score


@dataclass(frozen=True)
class Trial:
    """One evaluated choice.

    Attributes:
        stage: of the strategy.
        config: the choice.
        score: on `images` search images.
        images: how many.
        work: block-forwards of the search when it was known.
    """

    stage: str
    config: RegCacheConfig
    score: Score
    images: int
    work: int = 0


@dataclass(frozen=True)
class SearchResult:
    """Outcome of a search.

    Attributes:
        best: the chosen numbers; empty if nothing beats the baseline alone.
        score: of the choice on all search images.
        nothing: of the baseline alone on all search images; None where every dimension was fixed.
        trials: everything evaluated, in order.
        candidate: the best choice before the test for a gain.
        p_value: of "the candidate is no better than the baseline alone"; 1 where it was not asked.
        undecided: choices that left the race for lack of budget, not by the statistics.
        not_tried: those of them that were never asked.
    """

    best: RegCacheConfig
    score: Score
    trials: list[Trial] = field(repr=False)
    nothing: Score | None = None
    candidate: RegCacheConfig | None = None
    p_value: float = 1.0
    undecided: int = 0
    not_tried: tuple[RegCacheConfig, ...] = ()

    @property
    def full_trials(self) -> list[Trial]:
        """Those on all search images."""
        most = max(trial.images for trial in self.trials)
        return [trial for trial in self.trials if trial.images == most]


def preference(config: RegCacheConfig, score: Score) -> tuple[float, float, int, int, int, int]:
    """Best value, then fidelity; then the smaller intervention, then the fewer tokens."""
    return (
        *score.key,
        -config.prefix_count,
        -config.range_delete_count,
        config.delete_count,
        config.prefix_block,
    )
