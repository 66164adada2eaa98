"""Names and constants that readers of a graph share with its writer. Imports nothing heavy."""

from __future__ import annotations

INPUT_NAME = "image"
OUTPUT_NAME = "image_features"

QKV = ("q", "k", "v")
"""Roles of the three products that TensorRT's form splits the qkv linear into."""

QUICK_GELU_FACTOR = 1.702
