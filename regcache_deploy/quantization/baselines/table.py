"""For every tensor: how the paper quantizes it, how the graph does, and whether the two agree.

Goes into the plan's provenance. Equal means the same grid of values for the same data; a searched
range may still differ where the layers before it do.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
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
_WIDENED = f"{_ASYMMETRIC}, range widened to hold 0"
_REPQ |= {f"{n}.input": (_ASYMMETRIC, _WIDENED) for n in ("attn.out_proj", "mlp.fc2")}
_REPQ |= {f"{n}.weight": ("per output channel, asymmetric", _ROW) for n in LINEARS}
_REPQ |= dict.fromkeys(OPERANDS, (_ASYMMETRIC, FLOAT))
_REPQ["attn.pv.probabilities"] = ("log-sqrt2", FLOAT)

FORMS: dict[str, Forms] = {"naive": _NAIVE, "ptq4vit": _PTQ4VIT, "repqvit": _REPQ}

OUTSIDE: dict[str, dict[str, str]] = {
    "naive": {},
    "ptq4vit": {
        "patch_embed.weight": _ROW,
        "proj.input": _TENSOR,
        "proj.weight": _TENSOR,
    },
    "repqvit": {
        "patch_embed.input": f"{_ASYMMETRIC}, always 8 bits",
        "patch_embed.weight": "per output channel, asymmetric",
        "proj.input": _ASYMMETRIC,
        "proj.weight": "per output channel, asymmetric",
    },
}
"""What the publication quantizes outside of the blocks; the graph leaves it in float."""

REST = "all other tensors"
"""Norms, biases, softmax and activation functions, residual sums: in float in every publication."""

FOLDED: dict[str, dict[str, str]] = {
    "value-bias": {"attn.out_proj.input": "without the values' bias"},
    "layer-scale": {f"{n}.weight": "with the layer scale" for n in ("attn.out_proj", "mlp.fc2")},
    "value-balance": {
        "attn.qkv.weight": "values balanced",
        "attn.out_proj.input": "balanced by channel",
        "attn.out_proj.weight": "columns balanced",
    },
}
"""Exact fold before calibration -> tensors that are others behind it, and how."""

ROW_FACTORS = ("with the layer scale", "values balanced")
"""Folds that multiply rows of a weight: with one scale for each row, the codes stay the same."""


@dataclass(frozen=True)
class Deployment:
    """What a user's options change between the paper and the graph.

    Attributes:
        bits: of the graph, where they are not the requested ones (`--reduce-range`).
        keep_float: linears that stay in floating point.
        strict: the graph is built in the paper's form (`--strict-paper`).
        folds: exact folds before calibration that change a weight of this encoder.
        reparametrized: the inputs of qkv and fc1 are per channel (`repqvit` alone).
        observer: how ranges of `naive` are set; the paper takes `minmax`.
        deployed_as: tensor -> the graph's form with its width, where a target has another one.
        treated: `blocks.I.ROLE.input` -> how it is treated before it is quantized.
        range_rule: of `repqvit`'s inputs with one range; the paper takes `percentile`.
    """

    bits: Bits | None = None
    keep_float: Collection[str] = ()
    strict: bool = False
    folds: Collection[str] = ()
    reparametrized: bool = True
    observer: str = "minmax"
    deployed_as: Mapping[str, str] | None = None
    treated: Mapping[str, str] = field(default_factory=dict)
    range_rule: str = "percentile"

    def form(self, tensor: str, paper: str, graph: str) -> str:
        """How the graph quantizes a tensor of a block, without its width."""
        form = paper if self.strict else graph
        if tensor.endswith("input") and "after the fold" in form and not self.reparametrized:
            form = _WIDENED
        if tensor.endswith("input"):
            form += _range_by(self.observer)
        if form.startswith(_WIDENED) and self.range_rule != "percentile":
            form += f", range by {self.range_rule.replace('_', ' ')}"
        for fold in self.folds:
            note = FOLDED.get(fold, {}).get(tensor)
            if note and not (note in ROW_FACTORS and form.startswith("per output channel")):
                form = f"{form}, {note}"
        return form


class Row(TypedDict):
    """One tensor of the table."""

    tensor: str
    paper: str
    graph: str
    equal: bool


def tensor_table(
    baseline: str, bits: Bits, spec: EncoderSpec, deployment: Deployment | None = None
) -> list[Row]:
    """The table of one encoder.

    Args:
        baseline: name.
        bits: requested widths.
        spec: the encoder.
        deployment: what the options change.
    """
    deployment = deployment or Deployment()
    built = deployment.bits or bits
    rest = FLOAT if deployment.deployed_as is None else "float16"
    rows = [Row(tensor=REST, paper=FLOAT, graph=rest, equal=rest == FLOAT)]
    for name, form in OUTSIDE[baseline].items():
        if name.startswith("proj") and not spec.projection:
            continue
        text = form if form.endswith("bits") else _with_width(form, name, bits)
        rows.append(Row(tensor=name, paper=text, graph=FLOAT, equal=False))
    for block in range(spec.depth):
        for tensor, (paper, graph) in FORMS[baseline].items():
            name = f"blocks.{block}.{tensor}"
            deployed = FLOAT
            if name.rsplit(".", 1)[0] not in deployment.keep_float:
                deployed = deployment.form(tensor, paper, graph)
                deployed += deployment.treated.get(name, "")
            texts = _with_width(paper, tensor, bits), _with_width(deployed, tensor, built)
            found = (deployment.deployed_as or {}).get(name, texts[1])
            rows.append(Row(tensor=name, paper=texts[0], graph=found, equal=texts[0] == found))
    return rows


def with_observer(rows: Sequence[Row], observer: str) -> list[Row]:
    """A table of `naive` with its ranges set anew by another observer."""
    changed = []
    for row in rows:
        graph = row["graph"]
        if row["tensor"].endswith(".input") and graph.startswith(_TENSOR):
            rest = re.sub(r"^, range by \w+", "", graph.removeprefix(_TENSOR))
            graph = _TENSOR + _range_by(observer) + rest
        paper = row["paper"]
        changed.append(Row(tensor=row["tensor"], paper=paper, graph=graph, equal=paper == graph))
    return changed


def _range_by(observer: str) -> str:
    return "" if observer == "minmax" else f", range by {observer}"


def fold_differences(folds: Collection[str]) -> tuple[str, ...]:
    """One line for each exact fold that changes what is quantized."""
    return tuple(
        f"{', '.join(t.split('.', 1)[1] for t in FOLDED[fold])}: behind the exact fold '{fold}'"
        for fold in folds
        if fold in FOLDED
    )


def _with_width(form: str, tensor: str, bits: Bits) -> str:
    width = bits.weight if tensor.endswith("weight") else bits.activation
    return form if form.startswith(FLOAT) else f"{form}, {width} bits"
