"""Run a RegCache bundle: images in, embeddings and classes out; neither torch nor onnx is needed.

    import regcache_engines

    with regcache_engines.open("clip.regcache") as clip:
        embeddings = clip.embed_images(["cat.jpg", "dog.png"])  # [2, E], of length 1
        best = clip.classify("cat.jpg")[0][0]                   # .label, .score

`open` gives a `Clip`, which takes photographs. Below it, `Bundle` is the checked folder,
`load_engine` loads its encoder into a runtime as an `Engine`, which takes arrays, `Preprocess`
makes those, and `zero_shot` compares features with a head. Mistakes of the input and faults of the
machine are subclasses of `RegCacheError`. The page docs/python.md has examples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bundle import Bundle
    from .clip import Clip
    from .clip_open import open
    from .engine import Engine, zero_shot
    from .errors import BundleError, ConfigError, DataError, EngineError, RegCacheError
    from .load import load_engine
    from .monitor import ProbeReport
    from .predictions import Prediction
    from .preprocess import Preprocess
    from .text import TextTower

__all__ = [
    "Bundle",
    "BundleError",
    "Clip",
    "ConfigError",
    "DataError",
    "Engine",
    "EngineError",
    "Prediction",
    "Preprocess",
    "ProbeReport",
    "RegCacheError",
    "TextTower",
    "load_engine",
    "open",
    "zero_shot",
]

_HOMES = {
    "Bundle": "bundle",
    "BundleError": "errors",
    "Clip": "clip",
    "ConfigError": "errors",
    "DataError": "errors",
    "Engine": "engine",
    "EngineError": "errors",
    "Prediction": "predictions",
    "Preprocess": "preprocess",
    "ProbeReport": "monitor",
    "RegCacheError": "errors",
    "TextTower": "text",
    "load_engine": "load",
    "open": "clip_open",
    "zero_shot": "engine",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that a command that only wants an exception pays for no numpy."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
