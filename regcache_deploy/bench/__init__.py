"""Timing engines side by side, and saying on which machine that was."""
