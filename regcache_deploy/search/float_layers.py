"""`--keep-float auto`: which linears stay in float so that a choice keeps a budget."""

from __future__ import annotations

import logging

from ..evaluation.image_sets import ImageSets
from ..quantization.baselines import Baseline
from ..quantization.keep_float import choose_float_layers
from .embedder import Embedder
from .find import FoundChoice

logger = logging.getLogger(__name__)


def choose_float(
    baseline: Baseline, searched: Embedder, sets: ImageSets, found: FoundChoice, budget: float
) -> tuple[str, ...]:
    """Leave as few linears in float as keep the budget, with the chosen RegCache in place.

    Args:
        baseline: gets the linears.
        searched: of the search images, on which it is scored.
        sets: of the search.
        found: the choice, and which linears are sensitive.
        budget: loss of the objective that is tolerated.

    Returns:
        A warning where the budget is not met even with all linears in float.
    """

    def score(names: frozenset[str]) -> float:
        baseline.keep_float = names
        title = f"{len(names)} linears in float"
        features = searched.features(title, baseline, found.result.best, found.register)
        return found.objective.score(features).value

    layers = found.sensitivity.layers
    ranking = sorted(layers, key=lambda name: layers[name].key)
    reference = found.objective.score(sets.reference).value
    choice = choose_float_layers(ranking, score, reference, budget)
    baseline.keep_float = choice.names
    logger.info("in float: %s", ", ".join(sorted(choice.names)) or "no linear")
    if choice.within:
        return ()
    return (
        f"--budget {budget:g} is not met even with all linears in float "
        f"({choice.value:.4f} against {reference:.4f})",
    )
