"""Room 3: run a RegCache bundle with nothing but numpy and a runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bundle import Bundle
    from .engine import Engine, zero_shot
    from .load import load_engine
    from .text import TextTower

__all__ = ["Bundle", "Engine", "TextTower", "load_engine", "zero_shot"]

_HOMES = {
    "Bundle": "bundle",
    "Engine": "engine",
    "TextTower": "text",
    "load_engine": "load",
    "zero_shot": "engine",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that a command that only wants an exception pays for no numpy."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
