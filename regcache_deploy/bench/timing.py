"""Interleaved timing: A B A B ..., so that whatever else the machine does meets all alike.

A figure of one variant alone is worth what the machine was worth at that moment. A ratio is
taken within a round, where both variants met the same machine, and its interval comes from the
rounds.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Run = Callable[[], Any]
Clock = Callable[[], float]

BOOTSTRAP_SAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A ratio with its 95 % bootstrap interval over `rounds` paired rounds."""

    value: float
    low: float
    high: float
    rounds: int


@dataclass(frozen=True)
class Samples:
    """Timed calls.

    Attributes:
        milliseconds: variant -> round -> milliseconds of each call in that round.
    """

    milliseconds: Mapping[str, list[list[float]]] = field(repr=False)

    def calls(self, name: str) -> list[float]:
        """Every call of a variant, in ms."""
        return [call for turn in self.milliseconds[name] for call in turn]

    def rounds(self, name: str) -> list[float]:
        """Median of each round, in ms."""
        return [float(np.median(turn)) for turn in self.milliseconds[name]]

    def percentile(self, name: str, q: float) -> float:
        """Percentile `q` over all calls, in ms."""
        return float(np.percentile(self.calls(name), q))

    def ratio(self, over: str, under: str) -> Interval:
        """How many times longer `over` takes than `under`; above 1, `under` is the faster one."""
        return paired_ratio(self.rounds(over), self.rounds(under))


def paired_ratio(over: list[float], under: list[float]) -> Interval:
    """Median over rounds of the ratio within a round; the bootstrap resamples rounds."""
    pairs = np.asarray(over, float) / np.asarray(under, float)
    draws = np.random.default_rng(0).choice(pairs, (BOOTSTRAP_SAMPLES, len(pairs)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return Interval(float(np.median(pairs)), float(low), float(high), len(pairs))


def interleave(
    runs: Mapping[str, Run],
    rounds: int,
    *,
    clock: Clock = time.perf_counter,
    seconds: float = math.inf,
    warmup: int = 1,
    turn_ms: float = 0.0,
    max_calls: int = 20,
    pause: float = 0.0,
    wall: Clock = time.monotonic,
    rest: Callable[[float], None] = time.sleep,
) -> Samples:
    """Time variants in turns, in an order that changes from round to round.

    Args:
        runs: variant -> one call of it.
        rounds: how often each variant gets its turn.
        clock: what is measured, in seconds: `perf_counter`, or `process_time` for CPU time.
        seconds: no further round begins after so long.
        warmup: untimed calls of each variant before the first round.
        turn_ms: a turn of a fast variant has as many calls as fit in this time, behind one that
            is not timed, because the variant before has emptied the caches.
        max_calls: most calls of a turn.
        pause: seconds of rest before such a turn: a runtime's threads spin for some milliseconds
            when their work is done, and would take a core from the next variant.
        wall: clock of `seconds`.
        rest: sleeps; another one in tests.
    """
    order = list(runs)
    calls = {}
    for name in order:
        for _ in range(max(warmup, 1)):
            began = clock()
            runs[name]()
            last = clock() - began
        calls[name] = min(max(int(turn_ms / max(last * 1e3, 1e-6)), 1), max_calls)
    times: dict[str, list[list[float]]] = {name: [] for name in order}
    end = wall() + seconds
    for index in range(rounds):
        random.Random(index).shuffle(order)
        for name in order:
            run = runs[name]
            if calls[name] > 1:
                if pause:
                    rest(pause)
                run()
            turn = []
            for _ in range(calls[name]):
                began = clock()
                run()
                turn.append((clock() - began) * 1e3)
            times[name].append(turn)
        if wall() > end:
            break
    return Samples(times)
