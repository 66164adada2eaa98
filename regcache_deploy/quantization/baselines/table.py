"""For every tensor: how the paper quantizes it, how the graph does, and whether the two agree.

Goes into the plan's provenance. Equal means the same grid of values for the same data; a searched
range may still differ where the layers before it do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypedDict

from regcache_export.spec import EncoderSpec

from ..quantizers import Bits

FLOAT = "float"

Forms = dict[str, tuple[str, str]]
"""Tensor of a block -> (paper, graph)."""

_TENSOR = "per tensor, symmetric"
_ROW = "per output channel, symmetric"
_ASYMMETRIC = "per tensor, asymmetric"

OPERANDS = ("attn.qk.query", "attn.qk.key", "attn.pv.probabilities", "attn.pv.value")
LINEARS = ("attn.qkv", "attn.out_proj", "mlp.fc1", "mlp.fc2")

_NAIVE: Forms = {f"{n}.input": (_TENSOR, _TENSOR) for n in LINEARS}
_NAIVE |= {f"{n}.weight": (_ROW, _ROW) for n in LINEARS}
_NAIVE |= dict.fromkeys(OPERANDS, (FLOAT, FLOAT))

_GROUPS = {"attn.qkv": "one scale each for W_q, W_k, W_v, symmetric"}
_PTQ4VIT: Forms = {f"{n}.input": (_TENSOR, _TENSOR) for n in LINEARS}
_PTQ4VIT["mlp.fc2.input"] = ("twin uniform (GELU)", _ASYMMETRIC)
_PTQ4VIT |= {f"{n}.weight": (_GROUPS.get(n, _TENSOR),) * 2 for n in LINEARS}
_PTQ4VIT |= dict.fromkeys(OPERANDS, (_TENSOR, FLOAT))
_PTQ4VIT["attn.pv.probabilities"] = ("twin uniform (softmax)", FLOAT)

_REPQ: Forms = {
    f"{n}.input": (
        "per channel, asymmetric, mean zero point after the fold",
        "per channel, asymmetric, zero point 2**(bits-1) after the fold",
    )
    for n in ("attn.qkv", "mlp.fc1")
}
_REPQ |= {
    f"{n}.input": (_ASYMMETRIC, f"{_ASYMMETRIC}, range widened to hold 0")
    for n in ("attn.out_proj", "mlp.fc2")
}
_REPQ |= {f"{n}.weight": ("per output channel, asymmetric", _ROW) for n in LINEARS}
_REPQ |= dict.fromkeys(OPERANDS, (_ASYMMETRIC, FLOAT))
_REPQ["attn.pv.probabilities"] = ("log-sqrt2", FLOAT)

FORMS: dict[str, Forms] = {"naive": _NAIVE, "ptq4vit": _PTQ4VIT, "repqvit": _REPQ}

OUTSIDE: dict[str, dict[str, str]] = {
    "naive": {},
    "ptq4vit": {"patch_embed.weight": "per output channel, symmetric", "proj": _TENSOR},
    "repqvit": {"patch_embed.weight": "per output channel, asymmetric", "proj": _ASYMMETRIC},
}
"""What the publication quantizes outside of the blocks; the graph leaves it in float."""


class Row(TypedDict):
    """One tensor of the table."""

    tensor: str
    paper: str
    graph: str
    equal: bool


def tensor_table(
    baseline: str,
    bits: Bits,
    spec: EncoderSpec,
    keep_float: Collection[str] = (),
    strict: bool = False,
    deployed_as: Mapping[str, str] | None = None,
) -> list[Row]:
    """The table of one encoder.

    Args:
        baseline: name.
        bits: widths.
        spec: the encoder.
        keep_float: linears that stay in floating point.
        strict: the graph is built in the paper's form (`--strict-paper`).
        deployed_as: tensor -> the graph's form with its width, where a target has another one.
    """
    rows = [
        Row(tensor=name, paper=form, graph=FLOAT, equal=False)
        for name, form in OUTSIDE[baseline].items()
    ]
    for block in range(spec.depth):
        for tensor, (paper, graph) in FORMS[baseline].items():
            name = f"blocks.{block}.{tensor}"
            deployed = paper if strict else graph
            if name.rsplit(".", 1)[0] in keep_float:
                deployed = FLOAT
            width = bits.weight if tensor.endswith("weight") else bits.activation
            forms = [f if f == FLOAT else f"{f}, {width} bits" for f in (paper, deployed)]
            forms[1] = (deployed_as or {}).get(name, forms[1])
            rows.append(
                Row(tensor=name, paper=forms[0], graph=forms[1], equal=forms[0] == forms[1])
            )
    return rows
