"""Sensitivity -> candidates -> register -> (block, tau, k~)."""

from .grid import SearchResult, search
from .problem import SearchProblem
from .sensitivity import Sensitivity, measure_sensitivity

__all__ = ["SearchProblem", "SearchResult", "Sensitivity", "measure_sensitivity", "search"]
