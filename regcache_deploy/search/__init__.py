"""Sensitivity -> candidates -> register -> (block, tau, k~)."""

from .problem import SearchProblem
from .result import SearchResult, Trial
from .sensitivity import Sensitivity, measure_sensitivity
from .settings import SearchSettings
from .space import SearchSpace
from .strategies import search

__all__ = [
    "SearchProblem",
    "SearchResult",
    "SearchSettings",
    "SearchSpace",
    "Sensitivity",
    "Trial",
    "measure_sensitivity",
    "search",
]
