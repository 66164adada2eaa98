"""Deletion of the image's own sink tokens (arXiv 2510.04547, section 4)."""

from __future__ import annotations

from ..passes.base import FoldState
from .builder import GraphBuilder


def delete_sinks(
    builder: GraphBuilder, state: FoldState, name: str, tokens: str, patch_count: int
) -> str:
    """Drop the k~ patch tokens of largest l-inf norm, per image; special tokens stay in front.

    Blocks are equivariant under permutation of the tokens and both pools are invariant, so the
    survivors need no particular order. They come by ascending norm, ties by position (TopK
    prefers the lower index), which is also the order of the simulation.

    Args:
        builder: graph under construction.
        state: what to bake; its regcache deletes.
        name: prefix of the nodes, e.g. `blocks.6.delete`.
        tokens: value `[B, N, D]`.
        patch_count: patch tokens among them.

    Returns:
        Value `[B, N - k~, D]`.
    """
    spec = state.encoder
    assert state.regcache is not None
    special, patches = "", tokens
    if spec.num_prefix_tokens:
        special, patches = f"{name}/special", f"{name}/patches"
        counts = [spec.num_prefix_tokens, patch_count]
        sizes = builder.ints("shape/special_and_patches", counts)
        builder.node(f"{name}/Split", [tokens, sizes], {"axis": 1}, [special, patches])
    magnitudes = builder.node(f"{name}/Abs", [patches])
    norms = builder.node(
        f"{name}/ReduceMax", [magnitudes, builder.ints("axes/width", [2])], {"keepdims": 0}
    )
    kept = builder.ints(f"{name}.kept", [patch_count - state.regcache.delete_count])
    positions = f"{name}/positions"
    builder.node(
        f"{name}/TopK",
        [norms, kept],
        {"axis": 1, "largest": 0, "sorted": 1},
        [f"{name}/kept_norms", positions],
    )
    # GatherND with a batch dimension takes the fewest nodes: GatherElements needs its index
    # expanded to the width, a flat Gather needs row offsets
    index = builder.node(f"{name}/Unsqueeze", [positions, builder.ints("axes/last", [2])])
    survivors = builder.node(f"{name}/GatherND", [patches, index], {"batch_dims": 1})
    if not special:
        return survivors
    return builder.node(f"{name}/Concat", [special, survivors], {"axis": 1})


def delete_alike(
    builder: GraphBuilder, state: FoldState, name: str, role: str, value: str, patch_count: int
) -> str:
    """The same rows as `delete_sinks` leaves of another value `[B, N, C]`, behind it."""
    special = state.encoder.num_prefix_tokens
    parts = [f"{name}/{role}/special", f"{name}/{role}/patches"] if special else [value]
    if special:
        sizes = builder.ints("shape/special_and_patches", [special, patch_count])
        builder.node(f"{name}/{role}/Split", [value, sizes], {"axis": 1}, parts)
    index = f"{name}/Unsqueeze"
    rows = builder.node(f"{name}/{role}/GatherND", [parts[-1], index], {"batch_dims": 1})
    if not special:
        return rows
    return builder.node(f"{name}/{role}/Concat", [parts[0], rows], {"axis": 1})
