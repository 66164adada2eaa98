"""What is asked of a search problem, and what comes back: plain values, for any process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..encoders.regcache import RegCacheConfig
from ..evaluation import Score
from .stopping import Stop


@dataclass(frozen=True)
class Ask:
    """One choice to be scored, as a strategy asks for it.

    Attributes:
        config: the choice.
        rows: indices `[m]` of the search images; None takes all.
        calibration: how many calibration images; None takes all.
        stop: asked along the way whether to leave the rest of `rows`. The score is that of the
            leading rows then.
        register: block -> vector `[D]`; None takes that of the choice's target block.
    """

    config: RegCacheConfig
    rows: Tensor | None = None
    calibration: int | None = None
    stop: Stop | None = None
    register: Mapping[int, Tensor] | None = None


@dataclass(frozen=True)
class Question:
    """The same with nothing left open: all that whoever answers has to know beside the images.

    Attributes:
        register: on the CPU; empty without a prefix.
        rows: indices `[m]`, in the order in which they are asked.
        calibration: how many calibration images.
    """

    config: RegCacheConfig
    register: Mapping[int, Tensor]
    rows: Tensor
    calibration: int
    stop: Stop | None = None


@dataclass(frozen=True)
class Answer:
    """A score and what it took.

    Attributes:
        work: block-forwards; from the problem with its hidden states, from a worker without.
    """

    score: Score
    work: int
