"""From image sets to a decision: sensitivity -> register -> search, with one count of the work."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from regcache_export.regcache_config import DeleteAt

from ..encoders.canonical import Encoder
from ..errors import ConfigError
from ..evaluation import FeatureError, FeatureFidelity, Objective
from ..options import ExportOptions
from ..progress import Reporter
from ..quantization.baselines import Baseline
from ..search_settings import SearchSettings
from .cost import SearchCost, calibration_walks, exhaustive_block_forwards, peak_memory
from .problem import SearchProblem
from .register import Candidate, Captures
from .registers import find_captures, make_register, take_best_singles
from .result import SearchResult
from .sensitivity import Sensitivity, measure_sensitivity
from .space import SearchSpace
from .strategy import race_budget, search

if TYPE_CHECKING:
    from ..image_sets import ImageSets

LOOK_BACK = 3
"""Target blocks are searched from this many blocks before the sensitive one (paper, section 4)."""


@dataclass(frozen=True)
class FoundChoice:
    """A finished search.

    Attributes:
        sensitivity: which block k, and the curve.
        space: what could be chosen.
        result: the decision and everything that was evaluated.
        register: of the chosen target block; empty without a prefix.
        recall: target block -> share of the candidates of largest fc2 input in block k that the
            ranking by its own input finds, too.
        candidates: of the chosen target block, or of k without a prefix.
        captures: the same candidates in their images.
        objective: that the search maximised.
        cost: counted work.
    """

    sensitivity: Sensitivity
    space: SearchSpace
    result: SearchResult
    register: dict[int, Tensor]
    recall: dict[int, float]
    candidates: list[Candidate]
    captures: Captures
    objective: Objective
    cost: SearchCost


def search_space(
    options: ExportOptions,
    encoder: Encoder,
    block: int,
    delete_at: str = "block_input",
    two_counts: bool = False,
) -> SearchSpace:
    """The paper's space around the sensitive block, less what the user fixed.

    With `two_counts`, ranges may be set without tokens that the graph keeps. A delete count that
    the user fixed alone is that of both.
    """
    space = SearchSpace(
        tuple(range(max(0, block - LOOK_BACK), block + 1)),
        block,
        delete_at=cast(DeleteAt, delete_at),
    )
    space = replace(space, delete=tuple(c for c in space.delete if c < encoder.spec.num_patches))
    if options.prefix_block is not None:
        space = replace(space, blocks=(options.prefix_block,))
    if options.prefix_count is not None:
        space = replace(space, prefix=(options.prefix_count,))
    if two_counts and options.delete_count is None:
        space = replace(space, ranges=space.delete)
    if options.delete_count is not None:
        space = replace(space, delete=(options.delete_count,))
    if options.range_delete_count is not None:
        space = replace(space, ranges=(options.range_delete_count,))
    return space


def choose_objective(settings: SearchSettings, sets: ImageSets) -> Objective:
    """The objective that was asked for.

    Raises:
        ConfigError: top-1 without labels and a text head, or where the strategy compares means.
    """
    objective = _objective(settings, sets)
    if settings.strategy == "confirmed" and not objective.smooth:
        raise ConfigError(
            f"--strategy confirmed tests differences of a feature objective, and {objective.name} "
            "counts images; take --strategy pruned, or --objective cosine"
        )
    return objective


def _objective(settings: SearchSettings, sets: ImageSets) -> Objective:
    if settings.objective in ("auto", sets.objective.name):
        return sets.objective
    if settings.objective == "top1":
        raise ConfigError(
            "--objective top1 needs labels and a text encoder with trained weights; "
            "take cosine or mse"
        )
    kinds: dict[str, type[FeatureError] | type[FeatureFidelity]]
    kinds = {"mse": FeatureError, "cosine": FeatureFidelity}
    return kinds[settings.objective](sets.reference)


@torch.no_grad()
def find_choice(
    options: ExportOptions,
    baseline: Baseline,
    encoder: Encoder,
    sets: ImageSets,
    settings: SearchSettings,
    reporter: Reporter,
) -> FoundChoice:
    """Search RegCache's numbers for one encoder, one baseline and one bit width.

    Its cost is told beside that of the published grid, whatever the space.

    Raises:
        ConfigError: an objective that these images cannot have, or a folder that is full.
        DataError: non-finite activations.
    """
    began, cache = time.monotonic(), sets.cache
    objective = choose_objective(settings, sets)
    size = len(sets.search)

    layers = 4 * encoder.spec.depth
    with reporter.stage("sensitivity of each linear layer", layers) as advance:
        sensitivity = measure_sensitivity(
            encoder,
            sets.calibration_tokens,
            partial(sets.tokens, encoder),
            size,
            objective,
            cache=cache,
            batch_size=options.batch_size,
            all_images=settings.strategy == "exhaustive",
            error=settings.error,
            seed=options.seed,
            advance=advance,
        )
    space = search_space(
        options, encoder, sensitivity.block, settings.delete_at, settings.two_counts
    )
    with reporter.stage("register candidates", len(space.blocks)) as advance:
        ranking, captures = find_captures(encoder, sets, space, settings, options.batch_size)
        advance(len(space.blocks))
    members = slice(None) if settings.candidates == "average" else slice(0, 1)
    registers = {t: make_register(encoder, c, settings, members) for t, c in captures.items()}
    problem = _problem(options, baseline, encoder, sets, settings, objective, registers)
    calibration = len(sets.calibration_tokens)
    depth, walks = encoder.spec.depth, calibration_walks(baseline)
    grid = len(space.grid()) if settings.strategy != "default" else None
    with reporter.stage("search of prefix and delete counts", grid) as advance:
        if settings.candidates == "best":
            take_best_singles(problem, space, captures, settings, options.seed)
        result = search(
            problem,
            space,
            settings,
            seed=options.seed,
            budget=race_budget(space, depth, size, calibration, walks),
            advance=advance,
        )
    best = result.best
    block = best.prefix_block if best.has_prefix else space.blocks[-1]
    cost = SearchCost(
        block_forwards=cache.work.block_forwards,
        exhaustive_block_forwards=exhaustive_block_forwards(
            space.published, depth, size, calibration, walks
        ),
        seconds=time.monotonic() - began,
        resumed_block_forwards=cache.work.resumed,
        hidden_state_bytes=problem.budget.used,
        peak_memory_bytes=peak_memory(),
    )
    return FoundChoice(
        sensitivity=sensitivity,
        space=space,
        result=result,
        register=dict(problem.registers[block]) if best.has_prefix else {},
        recall={t: ranking.recall(t) for t in space.blocks},
        candidates=ranking.chosen(settings.ranking, block),
        captures=captures[block],
        objective=objective,
        cost=cost,
    )


def _problem(
    options: ExportOptions,
    baseline: Baseline,
    encoder: Encoder,
    sets: ImageSets,
    settings: SearchSettings,
    objective: Objective,
    registers: Mapping[int, Mapping[int, Tensor]],
) -> SearchProblem:
    return SearchProblem(
        encoder=encoder,
        baseline=baseline.fast(),
        calibration_tokens=sets.calibration_tokens,
        tokens=partial(sets.tokens, encoder),
        size=len(sets.search),
        objective=objective,
        registers=registers,
        cache=sets.cache,
        memory=settings.memory_bytes,
        batch_size=options.batch_size,
    )


def make_problem(
    options: ExportOptions,
    baseline: Baseline,
    encoder: Encoder,
    sets: ImageSets,
    found: FoundChoice,
) -> SearchProblem:
    """The problem of a finished search again, with the register that it chose."""
    registers = {found.result.best.prefix_block: found.register}
    return _problem(options, baseline, encoder, sets, SearchSettings(), found.objective, registers)
