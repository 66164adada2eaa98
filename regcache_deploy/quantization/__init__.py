"""Quantizers, simulation, and the three baselines that set their parameters."""
