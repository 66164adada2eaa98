"""Quantizers, simulation, and the three baselines that set their parameters."""

from .baselines import BASELINES, make_baseline
from .quantizers import Bits, Quantizer, Uniform
from .simulate import Calibration, LinearQuantization, Quantization, SimulatedNumerics

__all__ = [
    "BASELINES",
    "Bits",
    "Calibration",
    "LinearQuantization",
    "Quantization",
    "Quantizer",
    "SimulatedNumerics",
    "Uniform",
    "make_baseline",
]
