"""The embedded demo: a small CLIP with planted sinks, and the two-digit numbers it reads."""

from .digits import CLASS_NAMES, SPLITS, TEMPLATES, render
from .model import DemoModel, load_demo

__all__ = ["CLASS_NAMES", "SPLITS", "TEMPLATES", "DemoModel", "load_demo", "render"]
