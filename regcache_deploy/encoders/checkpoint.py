"""Read a checkpoint file: safetensors, or a torch file with weights only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError

WRAPPERS = ("state_dict_ema", "state_dict", "model_ema", "model", "teacher")
"""Keys under which training programs put the weights."""


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Weights by name.

    A torch file is opened with `weights_only=True`: it cannot run code.

    Raises:
        ModelError: not there, unreadable, or no dictionary of tensors.
    """
    if not path.is_file():
        raise ModelError(f"no checkpoint file at {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, safetensors and pickle each raise their own kinds
        raise ModelError(f"{path} does not fit or cannot be read: {explain(error)}") from error
    if isinstance(content, Mapping):
        inner = [content[k] for k in WRAPPERS if isinstance(content.get(k), Mapping)]
        content = inner[0] if inner else content
    if not isinstance(content, Mapping) or not any(isinstance(v, Tensor) for v in content.values()):
        raise ModelError(f"{path} holds no weights by name (a state dict)")
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    if all(name.startswith("module.") for name in tensors):  # written by DataParallel
        return {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def explain(error: Exception) -> str:
    """The part of a loading error that names keys and shapes, on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    details = [line for line in lines if "key(s)" in line or "size mismatch" in line]
    text = "; ".join(details[:2]) or (lines[0] if lines else type(error).__name__)
    return text if len(text) <= 300 else text[:297] + "..."


def looks_like_path(text: str) -> bool:
    return "/" in text or Path(text).suffix in {".pt", ".pth", ".bin", ".safetensors", ".npz"}
