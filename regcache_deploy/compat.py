"""Work around the environment, in one place."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType
from typing import Any

from .errors import ConfigError

_keep: list[Any] = []  # torch.library registrations die with their object


def _declare_torchvision_operators() -> None:
    """Declare torchvision's two unguarded operators where its binary cannot be loaded.

    The index carries torchvision built for CUDA only. Beside a CPU build of torch its binary does
    not load, and the import then stops at the fake kernels of `nms` and `qnms`. Only the Python
    transforms are needed here, so a schema without a kernel is enough.
    """
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _keep.append(library)


def import_torchvision() -> ModuleType:
    """Import torchvision, also where its compiled operators do not load."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module("torchvision")
        except RuntimeError as error:
            if "torchvision::" not in str(error):
                raise
        _declare_torchvision_operators()
        return importlib.import_module("torchvision")


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, or say which extra brings it.

    Raises:
        ConfigError: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"this command needs {module.split('.')[0]}, which is not installed; "
            f"run: pip install 'regcache-deploy[{extra}]'"
        ) from error


def import_open_clip() -> Any:
    """Import open_clip. Raises ConfigError where the `search` extra is missing."""
    require("torch", "search")
    try:
        import_torchvision()
    except ModuleNotFoundError as error:
        raise ConfigError(
            "this command needs torchvision, which is not installed; "
            "run: pip install 'regcache-deploy[search]'"
        ) from error
    return require("open_clip", "search")
