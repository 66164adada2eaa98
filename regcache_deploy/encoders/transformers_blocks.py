"""Blocks and positions of transformers' ViTs under their canonical names."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from regcache_export.spec import EncoderSpec
from regcache_export.text_spec import TextSpec

from ..errors import ModelError
from .parameters import Parameters
from .reading import Weights
from .size_warnings import warn_of_resampled_positions

Names = tuple[str, ...]
"""Names under which one module may stand: on disk, and as later releases name it in memory."""


@dataclass(frozen=True)
class BlockNames:
    """Where the parts of a block are.

    Attributes:
        query, key, value: three linears, packed here.
        gate: of a gated MLP, which has it apart from fc1; packed here, in front of it.
        scales: the two layer scales, or None.
        biased: which of query, key and value have a bias.
        out_bias, mlp_bias: whether the other linears have one.
    """

    norm1: str
    norm2: str
    query: Names
    key: Names
    value: Names
    out_proj: Names
    fc1: Names
    fc2: Names
    gate: Names | None = None
    scales: tuple[str, str] | None = None
    biased: tuple[bool, bool, bool] = (True, True, True)
    out_bias: bool = True
    mlp_bias: bool = True


def read_blocks(
    parameters: Parameters, layers: str, spec: EncoderSpec | TextSpec, names: BlockNames
) -> Weights:
    """Weights of all blocks; `layers` is what stands in front of a block's number."""
    out: Weights = {}
    for index in range(spec.depth):
        out |= _block(parameters, f"{layers}{index}.", f"blocks.{index}", names, spec)
    return out


def _block(
    parameters: Parameters,
    source: str,
    name: str,
    names: BlockNames,
    spec: EncoderSpec | TextSpec,
) -> Weights:
    def affine(to: str, modules: Names, bias: bool = True) -> Weights:
        return parameters.affine(to, *[source + module for module in modules], bias=bias)

    qkv = [
        affine(part, modules, bias)
        for part, modules, bias in zip(
            "qkv", (names.query, names.key, names.value), names.biased, strict=True
        )
    ]
    out = {
        f"{name}.attn.qkv.{kind}": torch.cat(
            [part[f"{letter}.{kind}"] for letter, part in zip("qkv", qkv, strict=True)]
        )
        for kind in ("weight", "bias")
    }
    out |= affine(f"{name}.norm1", (names.norm1,)) | affine(f"{name}.norm2", (names.norm2,))
    out |= affine(f"{name}.attn.out_proj", names.out_proj, names.out_bias)
    fc1 = f"{name}.mlp.fc1"
    first = affine(fc1, names.fc1, names.mlp_bias)
    if names.gate is not None and first[f"{fc1}.weight"].shape[0] == spec.mlp_width:
        gate = affine(fc1, names.gate, names.mlp_bias)
        first = {key: torch.cat([gate[key], value]) for key, value in first.items()}
    out |= first
    out |= affine(f"{name}.mlp.fc2", names.fc2, names.mlp_bias)
    if names.scales is not None:
        for to, scale in zip(("ls1", "ls2"), names.scales, strict=True):
            out[f"{name}.{to}"] = parameters.take(source + scale)
    return out


def resample_positions(table: Tensor, grid: tuple[int, int], antialias: bool = False) -> Tensor:
    """Position embedding `[P, D]` of a square grid for another one, as transformers does.

    That is bicubic, with antialiasing in Dinov2WithRegisters only.

    Raises:
        ModelError: the table is that of no square, and of another grid than this one.
    """
    if len(table) == grid[0] * grid[1] and grid[0] == grid[1]:
        return table
    side = math.isqrt(len(table))
    if side * side != len(table):
        if len(table) == grid[0] * grid[1]:
            return table
        raise ModelError(f"a position embedding of {len(table)} patches cannot be resampled")
    warn_of_resampled_positions("the model's files", (side, side), grid)
    square = table.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resampled = F.interpolate(
        square, size=grid, mode="bicubic", align_corners=False, antialias=antialias
    )
    return resampled.flatten(2)[0].T
