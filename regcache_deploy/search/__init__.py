"""Sensitivity -> candidates -> register -> (block, tau, k~)."""
