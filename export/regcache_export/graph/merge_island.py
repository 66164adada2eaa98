"""The nodes of one merge, from the metric to the tokens that are left.

At one image, a node costs its start more than its work, and what costs work is each pass over the
tokens `[B, N, D]`. So there are three of those (a gather, a product, a sum), and no node that a
table of constants or a longer sort makes needless (`docs/fewer-tokens.md` has the times).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .builder import GraphBuilder
from .float_layers import float_constant


@dataclass(frozen=True)
class Moves:
    """Who goes where. Rows are counted from the first token, leading tokens included.

    Attributes:
        source: rows of the r sources that go, value `[B, r, 1]`.
        kept: rows of all others, in the order in which they come out, value `[B, N - r, 1]`.
        target: rows of the r destinations, value `[B, r, 1]`.
        hit: value `[B, N - r, r]`, 1 where a source goes into a token that is kept.
    """

    source: str
    kept: str
    target: str
    hit: str


@dataclass(frozen=True)
class Weights:
    """What a destination becomes.

    Attributes:
        share: of each source in its destination, value `[B, r, 1]`.
        total: the patches that each token stands for then, value `[B, N - r, 1]`.
    """

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
        self.left = special + patches - count

    def moves(self, metric: str) -> Moves:
        """Pair by a metric, value `[B, N, C]`.

        The most similar sources first, ties by place, as TopK has them; of equally similar
        destinations the first one, as ArgMax has it.
        """
        unit = self._node("LpNormalization", metric, axis=-1, p=2)
        bounds = (self.special + 1, self.special + self.patches, 1, 2)
        odd = self._node("odd/Slice", unit, *map(self._ints, bounds))
        cosines = self._node("MatMul", unit, self._node("Transpose", odd, perm=[0, 2, 1]))
        best = self._node("ReduceMax", cosines, self._ints(2), keepdims=1)
        rows, target = f"{self.name}/rows", f"{self.name}/destinations"
        self._node(
            "TopK",
            self._rank(best),
            self._ints(self.special + self.patches),
            outputs=[f"{self.name}/best", rows],
            axis=1,
            sorted=1,
        )
        go, kept = self._split(rows)
        # only those that go need their destination: some runtimes sort for an ArgMax
        cosines = self._rows("go", cosines, go)
        self._node("ArgMax", cosines, outputs=[target], axis=2, keepdims=0)
        places = np.arange(self.destinations, dtype=np.int64)[:, None] * 2 + self.special + 1
        table = self.builder.constant(f"merge.rows_{self.special}_{self.destinations}", places)
        # behind a merge the destinations are the last rows
        place = self._node("place/Add", target, self._ints(self.left - self.destinations))
        depth = self.builder.constant(f"merge.left_{self.left}", np.asarray(self.left, np.int64))
        values = float_constant(self.builder, "merge.off_on", np.asarray([0, 1]))
        return Moves(
            go,
            kept,
            self._node("rows/Gather", table, target, axis=0),
            self._node("OneHot", place, depth, values, axis=1),
        )

    def weights(self, moves: Moves, sizes: str | None) -> Weights:
        """Shares by size, value `[B, N, 1]`; None where each token is one patch."""
        if sizes is None:
            kept, size = (
                float_constant(self.builder, f"merge.ones_{n}", np.ones((1, n, 1)))
                for n in (self.left, self.count)
            )
        else:
            kept = self._rows("size/kept", sizes, moves.kept)
            size = self._rows("size/source", sizes, moves.source)
        total = self._node("size/Add", kept, self._node("size/MatMul", moves.hit, size))
        back = self._node("hit/Transpose", moves.hit, perm=[0, 2, 1])
        return Weights(
            share=self._node("share/Div", size, self._node("total/MatMul", back, total)),
            total=total,
        )

    def merged(self, tokens: str, moves: Moves, weights: Weights) -> str:
        """Value `[B, N - r, D]` of tokens `[B, N, D]`.

        A destination moves towards its sources, by their shares; nothing is added to any other
        token, bit for bit.
        """
        source = self._rows("source", tokens, moves.source)
        way = self._node("way/Sub", source, self._rows("target", tokens, moves.target))
        moved = self._node("hit/MatMul", moves.hit, self._node("way/Mul", way, weights.share))
        return self._node("tokens/Add", self._rows("tokens", tokens, moves.kept), moved)

    def places(self, name: str, before: str | None, moves: Moves) -> str:
        """Which patches of the image are left, value `[B, patches - r]`.

        Args:
            name: prefix of the nodes.
            before: the same in front of the merge; None where all are there.
            moves: of this merge.
        """
        bounds = [self._ints(n) for n in (self.special, self.left, 1, 1)]
        rest = self.builder.node(f"{name}/Slice", [moves.kept, *bounds])
        rest = self.builder.node(f"{name}/Squeeze", [rest, self._ints(2)])
        rest = self.builder.node(f"{name}/Sub", [rest, self._ints(self.special)])
        if before is None:
            return rest
        return self.builder.node(f"{name}/GatherElements", [before, rest], {"axis": 1})

    def _rank(self, best: str) -> str:
        """Sources by their best cosine, leading tokens before them, destinations behind, by place.

        A choice and no sum: OpenVINO 2026.4 fuses an Add of a constant into the maximum, wrongly.
        """
        place = np.arange(self.patches)
        leading = 2 + np.arange(self.special)[::-1]
        fixed = np.concatenate([leading, -2 - place])[None, :, None]
        source = np.concatenate([leading < 0, place % 2 == 0])[None, :, None]
        tag = f"{self.special}_{self.patches}"
        rank = float_constant(self.builder, f"merge.rank_{tag}", fixed)
        asked = self.builder.constant(f"merge.sources_{tag}", source)
        return self._node("rank/Where", asked, best, rank)

    def _split(self, rows: str) -> tuple[str, str]:
        """The r sources that go, and all others."""
        go, others = f"{self.name}/go", f"{self.name}/others"
        counts, parts = [self.count, self.left - self.special], [go, others]
        if not self.special:
            self._node("Split", rows, self._ints(*counts), outputs=parts, axis=1)
            return go, others
        leading = f"{self.name}/leading"
        counts, parts = [self.special, *counts], [leading, *parts]
        self._node("Split", rows, self._ints(*counts), outputs=parts, axis=1)
        return go, self._node("kept/Concat", leading, others, axis=1)

    def _rows(self, role: str, value: str, rows: str) -> str:
        return self._node(f"{role}/GatherND", value, rows, batch_dims=1)

    def _ints(self, *values: int) -> str:
        name = "_".join(map(str, values)).replace("-", "minus")
        return self.builder.ints(f"merge.ints_{name}", values)

    def _node(
        self, role: str, *inputs: str, outputs: list[str] | None = None, **attributes: object
    ) -> str:
        return self.builder.node(f"{self.name}/{role}", inputs, attributes, outputs or [])
