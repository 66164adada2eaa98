"""Teacher-forced comparison of a graph's trace with a simulation, block by block.

Equality of all codes end to end cannot be had in a deep encoder: float sums in another order move
one value across a rounding tie, and from there on everything differs a little (a float32 and a
float64 run of one and the same simulation diverge as much). So every block of the simulation gets
the graph's own block input, and behind every quantizer it goes on with the graph's own codes. What
is compared then is one stage at a time, and only a rounding tie can differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from .errors import BundleError
from .survivors import Array, Left, Pairs
from .trace import Tensors, Trace

TIE = 0.01
"""Farthest from a rounding tie, in steps, at which float noise may decide a code. Sums in float32
are off by less than 1e-3 steps on the encoders measured; a wrong parameter is off by far more."""

SAME_LEVEL = 1e-3
"""Two levels in float nearer than this are one: float32 holds them to 1e-5."""


SAME_NORM = 1e-5
"""Relative difference below which two norms tie: some hundred roundings of float32. Behind
attention the norms are float32 sums, whose order alone decides between two that lie nearer than
that; a graph that chooses by something else is off by far more."""

SAME_COSINE = 1e-5
"""Difference below which two cosines tie: they are float32 sums of products of at most 1."""

CHOICE = "/TopK"
"""Ends the name of the node that chooses the surviving patches, or the sources that merge."""

PAIRING = "/ArgMax"
"""Ends the name of the node that gives the destinations of a merge."""


@dataclass(frozen=True)
class Forced:
    """What the graph computed in one block.

    Attributes:
        codes: linear -> levels (see `levels`), of the first tokens where the graph has fewer (see
            `leading`).
        positions: of the surviving patches `[B, n]`, or None.
        pairs: of the patches that merge, or None.
    """

    codes: Mapping[str, Array]
    positions: Array | None
    pairs: Pairs | None = None


@dataclass(frozen=True)
class Simulated:
    """What a simulation makes of one block.

    Attributes:
        steps: linear -> input in steps of its quantizer, neither rounded nor clipped, on the same
            origin as levels.
        codes: linear -> levels.
        positions: of the surviving patches, or None.
        output: tokens at the block's end.
        norms: of all patches `[B, P]`, by which `positions` were chosen; without them every other
            position is off.
        pairs: of the patches that merge, or None.
        similarity: cosines `[B, |A|, |B|]` by which `pairs` were found.
    """

    steps: Mapping[str, Array]
    codes: Mapping[str, Array]
    positions: Array | None
    output: Array
    norms: Array | None = None
    pairs: Pairs | None = None
    similarity: Array | None = None


class Simulator(Protocol):
    """A simulation of the blocks; independent of the graph's nodes and kernels."""

    def block(
        self, index: int, tokens: Array, forced: Forced, left: Left | None = None
    ) -> Simulated:
        """Simulate block `index` on `tokens [B, N, D]`, going on with what is forced.

        `left` says which patches are among them; None where all are there.
        """
        ...


class Ends(Protocol):
    """What the simulation computes in front of the blocks and behind them."""

    def embed(self, pixels: Array, preprocess: Mapping[str, Any]) -> Array:
        """uint8 images `[B, H, W, 3]` -> tokens `[B, N, D]` at the input of block 0."""
        ...

    def pool(self, tokens: Array, left: Left) -> Array:
        """Tokens `[B, N, D]` behind the last block -> features `[B, E]`."""
        ...


@dataclass(frozen=True)
class NodeCount:
    """How a node of the graph compares with the simulation, over all images so far.

    Attributes:
        node: of the graph.
        elements: compared values.
        different: values whose code is another one.
        off_tie: of these, values that are no rounding tie of one step; of positions, those whose
            norms differ by more than `SAME_NORM`.
        error: largest difference relative to the tensor's largest value; for float tensors.
    """

    node: str
    elements: int = 0
    different: int = 0
    off_tie: int = 0
    error: float = 0.0

    def __add__(self, other: NodeCount) -> NodeCount:
        return replace(
            self,
            elements=self.elements + other.elements,
            different=self.different + other.different,
            off_tie=self.off_tie + other.off_tie,
            error=max(self.error, other.error),
        )


@dataclass
class Comparison:
    """Counts by node, in the graph's order.

    Attributes:
        counts: by node.
        same_pairs: of every image, whether all its merges pair the same tokens in the same order;
            empty where nothing is merged.
    """

    counts: dict[str, NodeCount] = field(default_factory=dict)
    same_pairs: list[bool] = field(default_factory=list)

    def add(self, count: NodeCount) -> None:
        known = self.counts.get(count.node)
        self.counts[count.node] = known + count if known else count


def levels(codes: Array, offset: int) -> Array:
    """Codes as int16 on a common origin, whatever integer type a target stores them in.

    Floats are levels without a code, and stay what they are.
    """
    if codes.dtype.kind == "f":
        return codes + np.zeros(1, codes.dtype)  # -0 becomes 0, which is another pattern of bits
    return codes.astype(np.int16) - np.int16(offset)


def leading(shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The part of a tensor that a graph has which goes on with the class token alone."""
    return tuple(map(slice, shape))


def compare_trace(
    trace: Trace,
    tensors: Tensors,
    offsets: Mapping[str, int],
    simulator: Simulator,
    comparison: Comparison,
    left: Left,
) -> Left:
    """Add one batch to a comparison.

    Args:
        trace: from the graph.
        tensors: names of its tensors.
        offsets: linear -> what is subtracted from the graph's codes to give levels.
        simulator: the other side.
        comparison: grows.
        left: the patches at the input of block 0.

    Returns:
        The patches behind the last block.
    """
    same: Array | None = None
    for index, block_input in enumerate(tensors.block_inputs):
        inside = {
            name: levels(trace.values[tensor], offsets[name])
            for name, tensor in tensors.codes.items()
            if name.startswith(f"blocks.{index}.")
        }
        positions = None
        if index in tensors.positions:
            positions = trace.values[tensors.positions[index]]
        tokens = trace.values[block_input]
        pairs = tensors.pairs_of(index, trace.values)
        simulated = simulator.block(index, tokens, Forced(inside, positions, pairs), left)
        if positions is not None:
            left = left.deleted(positions)
            node = tensors.positions[index].replace("/positions", CHOICE)
            comparison.add(_compare_positions(node, positions, simulated))
        if pairs is not None:
            left = left.merged(pairs)
            name = tensors.pairs[index][0].rpartition("/")[0]
            agreeing = _compare_pairs(name, pairs, simulated, comparison)
            same = agreeing if same is None else same & agreeing
        for name, codes in inside.items():
            part = leading(codes.shape)
            found, steps = simulated.codes[name][part], simulated.steps[name][part]
            comparison.add(_compare_codes(tensors.codes[name], codes, found, steps))
        output = trace.values[tensors.outputs[index]]
        expected = simulated.output[:, : output.shape[1]]
        comparison.add(compare_floats(tensors.outputs[index], output, expected))
    if same is not None:
        comparison.same_pairs += same.tolist()
    return left


def _compare_positions(node: str, positions: Array, simulated: Simulated) -> NodeCount:
    """Rank by rank: both sides sort the patches by norm, so that equal ranks have equal norms."""
    if simulated.positions is None:
        raise BundleError("graph and certificate disagree on where a block deletes tokens")
    different = positions != simulated.positions
    off_tie = different
    if simulated.norms is not None:
        found, expected = (
            np.take_along_axis(simulated.norms, chosen, axis=1)
            for chosen in (positions, simulated.positions)
        )
        off_tie = different & ~(np.abs(found - expected) <= SAME_NORM * expected)
    return NodeCount(node, positions.size, int(different.sum()), int(off_tie.sum()))


def _compare_pairs(name: str, pairs: Pairs, simulated: Simulated, comparison: Comparison) -> Array:
    """Count the order of the sources and their destinations; which images agree in both, `[B]`.

    As with positions, equal ranks have equal cosines; and another destination is as near as the
    simulation's. The simulation goes on with the graph's pairs, so that an image with another pair
    is held to the same bounds behind it.
    """
    expected, similarity = simulated.pairs, simulated.similarity
    assert expected is not None
    assert similarity is not None
    best = similarity.max(axis=2)
    found, wanted = (np.take_along_axis(best, p.order, axis=1) for p in (pairs, expected))
    moved = pairs.order != expected.order
    off = moved & ~(np.abs(found - wanted) <= SAME_COSINE)
    choice = NodeCount(name + CHOICE, moved.size, int(moved.sum()), int(off.sum()))
    go = pairs.order[:, : pairs.destinations.shape[1]]
    rows = np.take_along_axis(similarity, go[..., None], axis=1)
    taken = np.take_along_axis(rows, pairs.destinations[..., None], axis=2)[..., 0]
    other = rows.argmax(axis=2) != pairs.destinations
    off = other & ~(rows.max(axis=2) - taken <= SAME_COSINE)
    pairing = NodeCount(name + PAIRING, other.size, int(other.sum()), int(off.sum()))
    comparison.add(choice)
    comparison.add(pairing)
    same: Array = ~(moved.any(axis=1) | other.any(axis=1))
    return same


def _compare_codes(node: str, codes: Array, simulated: Array, steps: Array) -> NodeCount:
    if codes.dtype.kind == "f":
        different = ~(np.abs(codes - simulated) <= SAME_LEVEL)  # NaN is different, too
    else:
        different = codes != simulated
    count = int(different.sum())
    off_tie = 0
    if count:
        apart = np.abs(codes[different].astype(np.float64) - simulated[different])
        value = steps[different].astype(np.float64)
        from_tie = np.abs(value - np.floor(value) - 0.5)
        tie = (apart <= 1 + SAME_LEVEL) & (from_tie <= TIE)
        off_tie = int((~tie).sum())
    return NodeCount(node, codes.size, count, off_tie)


def compare_floats(node: str, found: Array, expected: Array) -> NodeCount:
    """Largest difference, relative to the largest expected value."""
    largest = max(float(np.abs(expected).max()), 1e-30)
    error = float(np.abs(found.astype(np.float64) - expected).max()) / largest
    return NodeCount(node, found.size, error=error if np.isfinite(error) else float("inf"))
