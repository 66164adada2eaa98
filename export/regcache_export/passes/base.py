"""What every exact fold shares: the state it changes, and what it promises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from ..merge import Merge
from ..plan import LinearQuant, Plan
from ..published_quant import PublishedQuant
from ..regcache_config import RegCacheConfig
from ..spec import EncoderSpec

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]

Stage = Literal["calibration", "export"]
"""`calibration`: the fold changes what is quantized (a weight, the input of a linear), so it runs
before the ranges are measured, and simulation and graph both see it. `export`: integer codes and
their meaning stay what they were."""


@dataclass(frozen=True)
class FoldState:
    """An encoder on its way into a graph.

    Attributes:
        encoder: structure.
        weights: as in `spec`; float32, or float64 where a fold has changed one.
        register: block -> mean LN1 output `[D]`.
        linears: quantizers; empty before calibration.
        published: quantizers as published, of linears and attention products.
        regcache: the chosen numbers.
        merge: how tokens are merged, or None.
        preprocess: with `mean` and `std`, for the pixel fold.
        row_scale: linear -> factors `[C_out]` on its output, made up for nowhere: the next
            operator is left out instead.
        input_shift: linear -> constant added to its input before it is quantized.
        prefix_bias: block -> qkv bias `[3D]` for the cached keys and values, where it is not the
            linear's: a fold has moved a constant from the linear's input into its bias.
        query_scaled: attention logits need no factor any more.
        pixels: layout of uint8 input, or None.
        last_block_cls_only: behind the keys and values of the last block, only token 0 goes on.
    """

    encoder: EncoderSpec
    weights: Mapping[str, Array] = field(repr=False)
    register: Mapping[int, Array] = field(default_factory=dict, repr=False)
    linears: Mapping[str, LinearQuant] = field(default_factory=dict)
    published: Mapping[str, tuple[PublishedQuant, PublishedQuant]] = field(default_factory=dict)
    regcache: RegCacheConfig | None = None
    merge: Merge | None = None
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    row_scale: Mapping[str, Float64] = field(default_factory=dict)
    input_shift: Mapping[str, float] = field(default_factory=dict)
    prefix_bias: Mapping[int, Float64] = field(default_factory=dict, repr=False)
    query_scaled: bool = False
    pixels: str | None = None
    last_block_cls_only: bool = False

    @classmethod
    def of_plan(cls, plan: Plan) -> FoldState:
        return cls(
            encoder=plan.encoder,
            weights=plan.weights,
            register=plan.register,
            linears=plan.linears,
            published=plan.published,
            regcache=plan.regcache,
            merge=plan.merge,
            preprocess=plan.preprocess,
        )

    def double(self, name: str) -> Float64:
        """A weight in float64."""
        return np.asarray(self.weights[name], dtype=np.float64)

    def changed(self, weights: Mapping[str, Array], **fields: Any) -> FoldState:
        """The same state with some weights and fields exchanged."""
        return replace(self, weights={**self.weights, **weights}, **fields)

    def has_prefix(self, block: int) -> bool:
        return bool(self.regcache and block in self.regcache.prefix_blocks(self.encoder.depth))


@dataclass(frozen=True)
class PassResult:
    """What a fold did.

    Attributes:
        state: after it.
        changed: layers it touched; empty where it does not apply.
        note: why it does not apply, or what it left alone.
    """

    state: FoldState
    changed: tuple[str, ...] = ()
    note: str = ""


class Pass(Protocol):
    """One fold: an identity in real numbers, checked in float64 by a test.

    Attributes:
        name: as in `--no-fold NAME`.
        stage: where it runs.
        requires: what must hold before.
        ensures: what holds afterwards.
    """

    name: str
    stage: Stage
    requires: str
    ensures: str

    def __call__(self, state: FoldState) -> PassResult: ...


def linear_names(state: FoldState, role: str) -> list[str]:
    """`blocks.I.role` of every block."""
    return [f"blocks.{index}.{role}" for index in range(state.encoder.depth)]
