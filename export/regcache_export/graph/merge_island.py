"""The nodes of one merge, from the metric to the tokens that are left."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..merge import NORM_FLOOR
from .builder import GraphBuilder
from .float_layers import float_constant


@dataclass(frozen=True)
class Moves:
    """Who goes where. Rows are counted from the first token, leading tokens included.

    Attributes:
        source: rows of the r sources that go, value `[B, r, 1]`.
        stays: rows of the leading tokens and the other sources, value `[B, n, 1]`; None where
            there are none.
        target: places of the r destinations, value `[B, r, 1]`.
        hit: value `[B, |B|, r]`, 1 where a source goes to a destination.
    """

    source: str
    stays: str | None
    target: str
    hit: str


@dataclass(frozen=True)
class Weights:
    """What a destination becomes.

    Attributes:
        own: its own share, value `[B, |B|, 1]`.
        share: that of each source in its destination, value `[B, r, 1]`.
        total: the patches that it stands for then, value `[B, |B|, 1]`.
    """

    own: str
    share: str
    total: str


class Island:
    """Adds the nodes `NAME/...` of one merge.

    Args:
        builder: graph under construction.
        name: `blocks.I.merge`.
        special: leading tokens.
        patches: patch tokens in front of the merge.
        count: sources r that go.
    """

    def __init__(
        self, builder: GraphBuilder, name: str, special: int, patches: int, count: int
    ) -> None:
        self.builder, self.name = builder, name
        self.special, self.patches, self.count = special, patches, count
        self.sources, self.destinations = (patches + 1) // 2, patches // 2

    def moves(self, metric: str) -> Moves:
        """Pair by a metric, value `[B, N, C]`.

        The most similar sources first, ties by place, as TopK has them; of equally similar
        destinations the first one, as ArgMax has it.
        """
        length = self._node("ReduceL2", metric, self._ints(-1), keepdims=1)
        floor = float_constant(self.builder, "merge.floor", np.asarray(NORM_FLOOR))
        unit = self._node("Div", metric, self._node("Clip", length, floor))
        left = self._slice("even", unit, self.special, step=2)
        right = self._slice("odd", unit, self.special + 1, step=2)
        right = self._node("Transpose", right, perm=[0, 2, 1])
        cosines = self._node("MatMul", left, right)
        best = self._node("ReduceMax", cosines, self._ints(2), keepdims=0)
        order, target = f"{self.name}/order", f"{self.name}/destinations"
        outputs = [f"{self.name}/best", order]
        self._node("TopK", best, self._ints(self.sources), outputs=outputs, axis=1, sorted=1)
        go, stay = self._split(order)
        # only those that go need their destination: some runtimes sort for an ArgMax
        cosines = self._rows("go", cosines, self._node("go/Unsqueeze", go, self._ints(2)))
        self._node("ArgMax", cosines, outputs=[target], axis=2, keepdims=0)
        # tables instead of arithmetic: each of these nodes costs its start more than its work
        rows = np.arange(self.sources, dtype=np.int64)[:, None] * 2 + self.special
        table = self.builder.constant(f"merge.rows_{self.special}_{self.sources}", rows)
        source = self._node("rows/go/Gather", table, go, axis=0)
        stays = self._node("rows/stay/Gather", table, stay, axis=0) if stay else None
        if self.special:
            first = np.arange(self.special, dtype=np.int64)[None, :, None]
            leading = self.builder.constant("merge.leading", first)
            leading = self._node("leading/Expand", leading, self.builder.batch_shape(3))
            parts = [leading, *([stays] if stays else [])]
            stays = self._node("stays/Concat", *parts, axis=1)
        depth = self.builder.constant(
            f"merge.destinations_{self.destinations}", np.asarray(self.destinations, np.int64)
        )
        values = float_constant(self.builder, "merge.off_on", np.asarray([0, 1]))
        return Moves(
            source,
            stays,
            self._node("targets/Unsqueeze", target, self._ints(2)),
            self._node("OneHot", target, depth, values, axis=1),
        )

    def weights(self, moves: Moves, sizes: str | None) -> Weights:
        """Shares by size, value `[B, N, 1]`; None where each token is one patch.

        A destination that receives nothing keeps a share of exactly 1.
        """
        if sizes is None:
            own = float_constant(self.builder, "merge.one", np.asarray(1))
            size = float_constant(
                self.builder, f"merge.ones_{self.count}", np.ones((1, self.count, 1))
            )
        else:
            own = self._slice("size/odd", sizes, self.special + 1, step=2)
            size = self._rows("size/source", sizes, moves.source)
        total = self._node("size/Add", own, self._node("size/MatMul", moves.hit, size))
        return Weights(
            own=self._node("own/Div", own, total),
            share=self._node("share/Div", size, self._rows("total", total, moves.target)),
            total=total,
        )

    def merged(self, tokens: str, moves: Moves, weights: Weights) -> str:
        """Value `[B, N - r, D]` of tokens `[B, N, D]`."""
        odd = self._slice("tokens/odd", tokens, self.special + 1, step=2)
        kept = self._node("own/Mul", odd, weights.own)
        rows = self._rows("source", tokens, moves.source)
        added = self._node("share/MatMul", moves.hit, self._node("share/Mul", rows, weights.share))
        return self._joined("tokens", tokens, moves, self._node("merged/Add", kept, added))

    def sizes(self, sizes: str | None, moves: Moves, weights: Weights) -> str:
        """What the tokens stand for then, value `[B, N - r, 1]`."""
        if sizes is not None:
            return self._joined("sizes", sizes, moves, weights.total)
        count = self.special + self.sources - self.count
        if not count:
            return weights.total
        ones = float_constant(self.builder, f"merge.ones_{count}", np.ones((1, count, 1)))
        ones = self._node("sizes/Expand", ones, self.builder.batch_shape(3))
        return self._node("sizes/Concat", ones, weights.total, axis=1)

    def places(self, name: str, before: str | None, moves: Moves) -> str:
        """Which patches of the image are left, value `[B, patches - r]`.

        Args:
            name: prefix of the nodes.
            before: the same in front of the merge; None where all are there.
            moves: of this merge.
        """
        odd = np.arange(1, self.patches, 2, dtype=np.int64)[None]
        rest = self.builder.constant(f"merge.odd_{self.patches}", odd)
        rest = self.builder.node(f"{name}/Expand", [rest, self.builder.batch_shape(2)])
        if self.sources > self.count:
            bounds = [self._ints(n) for n in (self.special, self.special + self.patches, 1, 1)]
            stays = self.builder.node(f"{name}/Slice", [str(moves.stays), *bounds])
            stays = self.builder.node(f"{name}/Squeeze", [stays, self._ints(2)])
            stays = self.builder.node(f"{name}/Sub", [stays, self._ints(self.special)])
            rest = self.builder.node(f"{name}/Concat", [stays, rest], {"axis": 1})
        if before is None:
            return rest
        return self.builder.node(f"{name}/GatherElements", [before, rest], {"axis": 1})

    def _joined(self, role: str, value: str, moves: Moves, destinations: str) -> str:
        """Leading tokens, the sources that stay, the destinations."""
        if moves.stays is None:
            return destinations
        stays = self._rows(f"{role}/stays", value, moves.stays)
        return self._node(f"{role}/Concat", stays, destinations, axis=1)

    def _split(self, order: str) -> tuple[str, str | None]:
        """The r sources that go, and the others."""
        if self.sources == self.count:
            return order, None
        parts = [f"{self.name}/go", f"{self.name}/stay"]
        sizes = self._ints(self.count, self.sources - self.count)
        self._node("Split", order, sizes, outputs=parts, axis=1)
        return parts[0], parts[1]

    def _rows(self, role: str, value: str, rows: str) -> str:
        return self._node(f"{role}/GatherND", value, rows, batch_dims=1)

    def _slice(self, role: str, value: str, start: int, step: int = 1) -> str:
        """Rows of `[B, N, ...]` from `start` to the last patch."""
        stop = self.special + self.patches
        return self._node(f"{role}/Slice", value, *map(self._ints, (start, stop, 1, step)))

    def _ints(self, *values: int) -> str:
        name = "_".join(map(str, values)).replace("-", "minus")
        return self.builder.ints(f"merge.ints_{name}", values)

    def _node(
        self, role: str, *inputs: str, outputs: list[str] | None = None, **attributes: object
    ) -> str:
        return self.builder.node(f"{self.name}/{role}", inputs, attributes, outputs or [])
