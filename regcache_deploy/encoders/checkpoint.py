"""Read a checkpoint file: safetensors, a torch file with weights only, or a TorchScript archive."""

from __future__ import annotations

import argparse
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError

WRAPPERS = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "teacher",
)
"""Keys under which training programs put the weights; averaged ones are taken first."""

MAX_WRAPPINGS = 8

LFS_POINTER = b"version https://git-lfs."
"""What a checkout without Git LFS has in place of a large file."""

PREFIXES = ("module.", "ema_model.")
"""What DataParallel and averages put in front of every name."""

MARKS = (
    "_orig_mod.",
    "_checkpoint_wrapped_module.",
    "_fsdp_wrapped_module.",
    "_forward_module.",
)
"""What torch.compile, activation checkpointing, FSDP and Fabric put in front of the names of a
module, anywhere."""

JIT_CONSTANTS = ("input_resolution", "context_length", "vocab_size")
"""Numbers beside the weights in OpenAI's archives."""

_NUMPY = (
    "dtype",
    "ndarray",
    *(
        f"{core}.multiarray.{made}"
        for core in ("core", "_core")
        for made in ("scalar", "_reconstruct")
    ),
)
_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
BESIDE = (
    *(f"numpy.{name}" for name in _NUMPY),
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in _PATHS),
    *(f"datetime.{name}" for name in ("datetime", "date", "time", "timedelta", "timezone")),
)
"""What training programs write down beside the weights: best accuracies, folders, times."""


class _Unread:
    """Takes the place of one of `BESIDE`: nothing is made of it, and nothing of it is run."""

    def __new__(cls, *_: object) -> _Unread:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Weights by name, without the wrappings that training programs put around them.

    A torch file is opened with `weights_only=True`: it cannot run code.

    Raises:
        ModelError: not there, unreadable, or no dictionary of tensors.
    """
    if not path.is_file():
        raise ModelError(f"no checkpoint file at {path}")
    try:
        with path.open("rb") as file:
            front = file.read(len(LFS_POINTER))
        if front == LFS_POINTER:
            raise ModelError(f"{path} is a pointer of Git LFS, not the weights; run: git lfs pull")
        if not front:
            raise ModelError(f"{path} is empty; download or copy it again")
        content = _read(path)
    except ModelError:
        raise
    except Exception as error:  # torch, safetensors and pickle each raise their own kinds
        raise ModelError(f"{path} does not fit or cannot be read: {explain(error)}") from error
    for _ in range(MAX_WRAPPINGS):  # a pickle may hold itself
        if not isinstance(content, Mapping):
            break
        inner = [content[k] for k in WRAPPERS if isinstance(content.get(k), Mapping)]
        if not inner and not _has_weights(content):
            inner = [v for v in content.values() if _has_weights(v)]
            if len(inner) > 1:
                names = ", ".join(f"'{k}'" for k, v in content.items() if _has_weights(v))
                raise ModelError(
                    f"{path} holds several models: {names}; keep the one that is meant"
                )
        if not inner:
            break
        content = inner[0]
    if not isinstance(content, Mapping) or not _has_weights(content):
        raise ModelError(f"{path} holds no weights by name (a state dict)")
    return unwrap_names({str(k): v for k, v in content.items() if isinstance(v, Tensor)})


def _has_weights(content: object) -> bool:
    return isinstance(content, Mapping) and any(isinstance(v, Tensor) for v in content.values())


def unwrap_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without the prefixes that all of them share, and without `MARKS`."""
    # counted beside the weights by torch's AveragedModel
    out = {name: value for name, value in tensors.items() if name != "n_averaged"}
    for mark in MARKS:
        out = {name.replace(mark, ""): value for name, value in out.items()}
    while out:
        shared = next((p for p in PREFIXES if all(name.startswith(p) for name in out)), None)
        if shared is None:
            break
        out = {name.removeprefix(shared): value for name, value in out.items()}
    return out


def below_attribute(tensors: Mapping[str, Tensor], known: set[str]) -> dict[str, Tensor]:
    """The weights below the attribute that a training program keeps its model in.

    Args:
        tensors: as in the file, e.g. of a LightningModule.
        known: names of the model.

    Returns:
        Those below the one attribute (`model.`, `net.module.`) where most of `known` are found;
        all, where none is found below any. Losses and metrics beside the model stay behind.

    Raises:
        ModelError: as many are found below another one: two copies, which may well differ.
    """
    parts = [name.split(".") for name in tensors]
    attributes = {"".join(f"{part}." for part in p[:n]) for p in parts for n in (0, 1, 2)}

    def below(attribute: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(attribute): value
            for name, value in tensors.items()
            if name.startswith(attribute)
        }

    found = {a: len(known & below(a).keys()) for a in sorted(attributes)}
    best = max(found, key=lambda a: found[a])  # of equally good ones the shortest
    if not found[best]:
        return dict(tensors)
    for other, count in found.items():
        # one inside of the other is one copy
        if count == found[best] and not (other.startswith(best) or best.startswith(other)):
            raise ModelError(
                f"the checkpoint holds the model twice, below '{best}' and below '{other}'; keep "
                "the one that is meant"
            )
    return below(best)


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if _is_torchscript(path):
        state = torch.jit.load(str(path), map_location="cpu").state_dict()
        return {name: value for name, value in state.items() if name not in JIT_CONSTANTS}
    # the arguments of a training program; setting attributes is all that reading one does
    known: list[Any] = [argparse.Namespace, *((_Unread, name) for name in BESIDE)]
    with torch.serialization.safe_globals(known):
        return torch.load(path, map_location="cpu", weights_only=True)


def _is_torchscript(path: Path) -> bool:
    """Whether the file is an archive of torch.jit, which torch.load refuses to open as weights."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(Path(name).name == "constants.pkl" for name in archive.namelist())


def explain(error: Exception) -> str:
    """The part of a loading error that names keys, shapes and classes, on one line."""
    whole = str(error)
    # torch's own text advises what no option here does
    if found := re.search(r"GLOBAL ([\w.]+)", whole):
        return (
            f"it holds {found[1]} beside the weights or in place of them, and reading that may run "
            "code; save the weights alone: torch.save(model.state_dict(), PATH)"
        )
    _, _, whole = whole.rpartition("WeightsUnpickler error:")
    lines = [line.strip() for line in whole.splitlines() if line.strip()]
    details = [line for line in lines if "key(s)" in line or "size mismatch" in line]
    text = "; ".join(details[:2]) or (lines[0] if lines else type(error).__name__)
    return text if len(text) <= 300 else text[:297] + "..."
