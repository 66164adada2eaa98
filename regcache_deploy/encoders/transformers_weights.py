"""Weights in transformers' files: whole or in shards, safetensors or torch's own."""

from __future__ import annotations

from torch import Tensor

from ..errors import ModelError
from .checkpoint import read_state_dict
from .model_files import ModelFiles, read_json

FILES = ("model.safetensors", "pytorch_model.bin")
"""The preferred one first; each may be in shards that `NAME.index.json` lists."""


def read_weights(files: ModelFiles) -> tuple[dict[str, Tensor], str]:
    """All tensors by name, and the file that they are in.

    Raises:
        ModelError: none is there, a shard is missing, or one cannot be read.
    """
    for name in FILES:
        whole = files.find(name)
        if whole is not None:
            return read_state_dict(whole), str(whole)
        index = files.find(f"{name}.index.json")
        if index is None:
            continue
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ModelError(f"{index} names no shards")
        tensors: dict[str, Tensor] = {}
        for shard in sorted(set(map(str, shards.values()))):
            path = files.find(shard)
            if path is None:
                raise ModelError(f"{files.absence(shard)}; {index.name} names it")
            tensors |= read_state_dict(path)
        missing = sorted(shards.keys() - tensors.keys())
        if missing:
            raise ModelError(f"the shards of {files.title} lack {', '.join(missing[:4])}")
        return tensors, str(index)
    raise ModelError(
        f"{files.absence(FILES[0])}; neither is there {FILES[1]}, nor are there shards"
    )
