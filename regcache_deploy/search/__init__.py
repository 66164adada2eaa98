"""Sensitivity -> candidates -> register -> (block, tau, k~)."""

from ..search_settings import SearchSettings
from .problem import SearchProblem
from .result import SearchResult, Trial
from .sensitivity import Sensitivity, measure_sensitivity
from .space import SearchSpace
from .strategy import search

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
