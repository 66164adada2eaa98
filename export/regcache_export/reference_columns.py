"""One linear from the groups of columns that a target writes it in."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .graph.names import QKV
from .spec import EncoderSpec
from .survivors import Array

PARTS = ("weight", "weight_scale", "weight_zero_point")


def with_packed_columns(constants: Mapping[str, Array], spec: EncoderSpec) -> dict[str, Array]:
    """The constants with the one linear of a plan in place of its groups of columns.

    `blocks.I.attn.qkv.*` for `q.*`, `k.*` and `v.*`; `blocks.I.mlp.fc1.*` for `fc1.0.*`, `fc1.1.*`
    and so on. A graph that has the packed one already keeps it. A bias that is zero is not in the
    graph.
    """
    packed = dict(constants)
    for block in range(spec.depth):
        attention, fc1 = f"blocks.{block}.attn", f"blocks.{block}.mlp.fc1"
        _pack(packed, f"{attention}.qkv", [f"{attention}.{role}" for role in QKV])
        groups = sum(f"{fc1}.{group}.weight" in packed for group in range(spec.mlp_width))
        _pack(packed, fc1, [f"{fc1}.{group}" for group in range(groups)])
    return packed


def _pack(constants: dict[str, Array], name: str, groups: list[str]) -> None:
    own = [{part: constants.pop(f"{group}.{part}", None) for part in _ALL} for group in groups]
    if not own or own[0]["weight"] is None:
        return
    for part in PARTS:
        values = [value for group in own if (value := group[part]) is not None]
        if values:
            joined = values[0] if values[0].size == 1 else np.concatenate(values, axis=-1)
            constants[f"{name}.{part}"] = joined
    biases = []
    for group in own:
        weight, bias = group["weight"], group["bias"]
        assert weight is not None
        zero = np.zeros(weight.shape[-1], np.float32)
        biases.append(zero if bias is None else bias.reshape(-1))
    constants[f"{name}.bias"] = np.concatenate(biases)


_ALL = (*PARTS, "bias")
