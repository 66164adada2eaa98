"""From image sets to a decision: sensitivity -> register -> search, with one count of the work."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor

from regcache_export.regcache_config import DeleteAt, PrefixBlocks

from ..encoders.canonical import Encoder
from ..errors import ConfigError
from ..evaluation import FeatureError, FeatureFidelity, Objective
from ..evaluation.image_sets import ImageSets, TokensOf
from ..evaluation.metrics import INSTANCES
from ..quantization.baselines import Baseline
from ..quantization.settings import layer_name
from ..work.count import peak_memory
from ..work.devices import free_memory
from ..work.memory import free_disk, image_memory
from ..work.progress import Reporter
from ..work.workers import Team
from .cost import SearchCost, calibration_walks, exhaustive_block_forwards
from .evaluator import Setup
from .problem import SearchProblem
from .register.capture import Candidate, Captures
from .register.choose import find_captures, make_register, take_best_singles
from .result import SearchResult
from .sensitivity import Sensitivity, cached_proxy, first_images, measure_sensitivity
from .settings import FindSettings, SearchSettings
from .space import SearchSpace
from .spill import Spill
from .strategies import race_budget, search

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


def search_space(settings: FindSettings, encoder: Encoder, block: int) -> SearchSpace:
    """The paper's space around the sensitive block, less what the user fixed.

    With `two_counts`, ranges may be set without tokens that the graph keeps. A delete count that
    the user fixed alone is that of both.
    """
    first = block if settings.prefix_blocks == "only" else max(0, block - LOOK_BACK)
    space = SearchSpace(
        tuple(range(first, block + 1)),
        block,
        delete_at=cast(DeleteAt, settings.delete_at),
        prefix_blocks=cast(PrefixBlocks, settings.prefix_blocks),
    )
    space = replace(space, delete=tuple(c for c in space.delete if c < encoder.spec.num_patches))
    if settings.prefix_block is not None:
        space = replace(space, blocks=(settings.prefix_block,))
    if settings.prefix_count is not None:
        space = replace(space, prefix=(settings.prefix_count,))
    if settings.two_counts and settings.delete_count is None:
        space = replace(space, ranges=space.delete)
    if settings.delete_count is not None:
        space = replace(space, delete=(settings.delete_count,))
    if settings.range_delete_count is not None:
        space = replace(space, ranges=(settings.range_delete_count,))
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
    if settings.objective == INSTANCES:
        raise ConfigError("--objective instances needs image sets that were loaded for it")
    if settings.objective == "top1":
        raise ConfigError(
            "--objective top1 needs labels and a text encoder with trained weights; "
            "take instances, cosine or mse"
        )
    kinds: dict[str, type[FeatureError] | type[FeatureFidelity]]
    kinds = {"mse": FeatureError, "cosine": FeatureFidelity}
    return kinds[settings.objective](sets.reference)


def spending(
    so_far: Callable[[], int], advance: Callable[[int], None], left: int
) -> Callable[[int], None]:
    """An `advance` that is told of evaluations and tells what they spent, `left` at most."""
    began, told = so_far(), 0

    def tell(evaluations: int) -> None:
        nonlocal told
        spent = min(so_far() - began, left)
        advance(spent - told)
        told = spent

    return tell


@torch.no_grad()
def find_choice(
    settings: FindSettings,
    baseline: Baseline,
    encoder: Encoder,
    sets: ImageSets,
    reporter: Reporter,
    rank_layers: bool = False,
    team: Team | None = None,
) -> FoundChoice:
    """Search RegCache's numbers for one encoder, one baseline and one bit width.

    Its cost is told beside that of the published grid, whatever the space.

    Args:
        rank_layers: measure every linear even where the choice does not depend on it.
        team: workers that evaluate; the result is the same without.

    Raises:
        ConfigError: an objective that these images cannot have, or a folder that is full.
        DataError: non-finite activations.
    """
    began, cache = time.monotonic(), sets.cache
    objective = choose_objective(settings, sets)
    size, calibration = len(sets.search), len(sets.calibration_tokens)
    depth, walks = encoder.spec.depth, calibration_walks(baseline)

    searched = TokensOf(sets.search)
    tokens = partial(searched, encoder)

    def budget(space: SearchSpace) -> int:
        return race_budget(space, depth, size, calibration, walks, settings.budget_fraction)

    about = search_space(settings, encoder, depth // 2)
    named = settings.sensitive_layer
    if named is not None:
        named = layer_name("--sensitive-layer", named)
    if not rank_layers and (named is not None or about.without_block_k):
        proxy = cached_proxy(encoder, tokens, size, settings.seed, settings.batch_size, cache)
        layer = named or f"blocks.{proxy.block}.mlp.fc2"
        sensitivity = Sensitivity(None, {}, layer, proxy)
    else:
        with reporter.stage("sensitivity of each linear layer", 4 * depth) as advance:
            sensitivity = measure_sensitivity(
                encoder,
                sets.calibration_tokens,
                searched,
                size,
                objective,
                cache=cache,
                batch_size=settings.batch_size,
                first=first_images(depth, budget(about), about.fixed),
                all_images=settings.strategy == "exhaustive",
                error=settings.error,
                seed=settings.seed,
                advance=advance,
                team=team,
            )
        if named is not None:  # the ranking is wanted, block k is not
            sensitivity = replace(sensitivity, layer=named)
    space = search_space(settings, encoder, sensitivity.block)
    with reporter.stage("register candidates", size) as advance:
        ranking, captures = find_captures(
            encoder, sets, space, settings, settings.batch_size, advance, team
        )
    members = slice(None) if settings.candidates == "average" else slice(0, 1)
    registers = {t: make_register(encoder, c, settings, members) for t, c in captures.items()}
    setup = Setup(
        encoder=encoder,
        baseline=baseline.fast(),
        calibration_tokens=sets.calibration_tokens,
        tokens=searched,
        objective=objective,
        batch_size=settings.batch_size,
        memory=_room(settings, encoder, sets),
    )
    spill = Spill(cache.folder, free_disk(cache.folder)) if cache.folder else Spill()
    problem = SearchProblem(setup, size, registers, cache, spill, team)
    # A race ends early or spends its budget; a grid has as many choices as it has.
    spends = settings.strategy == "default" and not space.fixed
    left = max(budget(space) - cache.work.block_forwards, 1)
    total = left if spends else len(space.grid())
    with reporter.stage(
        "search of prefix and delete counts" + ", by budget" * spends, total
    ) as step:
        advance = spending(lambda: problem.answered, step, left) if spends else step
        if settings.candidates == "best":
            take_best_singles(problem, space, captures, settings, settings.seed)
        result = search(
            problem, space, settings, seed=settings.seed, budget=budget(space), advance=advance
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
        hidden_state_bytes=problem.evaluator.budget.used,
        spilled_state_bytes=problem.spill.used,
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


def _room(settings: SearchSettings, encoder: Encoder, sets: ImageSets) -> int:
    """Bytes for hidden states: `--memory`, or what the pixels or the GPU leave."""
    pixels = sets.search.pixels.nbytes + sets.evaluation.pixels.nbytes
    left = max(image_memory() - pixels, 0)
    on_device = free_memory(encoder.device)
    return min(settings.memory_bytes, left if on_device is None else on_device // 2)
