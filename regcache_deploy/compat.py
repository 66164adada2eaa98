"""Work around the environment, in one place."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import ConfigError

DISTRIBUTION = "regcache-deploy"

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
        raise ConfigError(_missing(module, extra)) from error


def is_installed(module: str) -> bool:
    """Whether a module can be imported, without the seconds that the import may take."""
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # None in sys.modules: kept from being imported
        return False


def require_installed(module: str, extra: str) -> None:
    """Raise ConfigError where `require` would."""
    if not is_installed(module):
        raise ConfigError(_missing(module, extra))


def _missing(module: str, extra: str) -> str:
    return (
        f"this command needs {module.split('.')[0]}, which is not installed; "
        f"run: {install_advice(extra)}"
    )


def install_advice(extra: str) -> str:
    """The command that installs an extra, for who installed the package and for who cloned it."""
    try:
        metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:  # run from a clone
        return f"pip install '{Path(__file__).resolve().parent.parent}[{extra}]'"
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def import_open_clip() -> Any:
    """Import open_clip. Raises ConfigError where the `search` extra is missing."""
    require("torch", "search")
    try:
        import_torchvision()
    except ModuleNotFoundError as error:
        raise ConfigError(_missing("torchvision", "search")) from error
    return require("open_clip", "search")
