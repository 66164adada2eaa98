"""Room 1: find the cache, the delete count and the scales in PyTorch, and hold the commands."""

__version__ = "0.1.0"
