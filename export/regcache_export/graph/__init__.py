"""The ONNX graph of a plan, written node by node from the encoder's description."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .names import INPUT_NAME, OUTPUT_NAME

if TYPE_CHECKING:
    from .encoder import IR_VERSION, OPSET, build_model, serialize

__all__ = ["INPUT_NAME", "IR_VERSION", "OPSET", "OUTPUT_NAME", "build_model", "serialize"]


def __getattr__(name: str) -> Any:
    """Import on first use: who only reads a graph needs no `onnx`."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(".encoder", __name__), name)
