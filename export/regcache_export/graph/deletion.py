"""Deletion of the image's own sink tokens (arXiv 2510.04547, section 4)."""

from __future__ import annotations

from ..passes.base import FoldState
from .builder import GraphBuilder


def delete_sinks(builder: GraphBuilder, state: FoldState, name: str, tokens: str) -> str:
    """Drop the k~ patch tokens of largest l-inf norm, per image; special tokens stay in front.

    Blocks are equivariant under permutation of the tokens and both pools are invariant, so the
    survivors need no particular order. They come by ascending norm, ties by position (TopK
    prefers the lower index), which is also the order of the simulation.

    Args:
        builder: graph under construction.
        state: what to bake; its regcache deletes.
        name: prefix of the nodes, e.g. `blocks.6.delete`.
        tokens: value `[B, N, D]`.

    Returns:
        Value `[B, N - k~, D]`.
    """
    spec = state.encoder
    assert state.regcache is not None
    special, patches = "", tokens
    if spec.num_prefix_tokens:
        special, patches = f"{name}/special", f"{name}/patches"
        counts = [spec.num_prefix_tokens, spec.num_patches]
        sizes = builder.ints("shape/special_and_patches", counts)
        builder.node(f"{name}/Split", [tokens, sizes], {"axis": 1}, [special, patches])
    magnitudes = builder.node(f"{name}/Abs", [patches])
    norms = builder.node(
        f"{name}/ReduceMax", [magnitudes, builder.ints("axes/width", [2])], {"keepdims": 0}
    )
    kept = builder.ints(f"{name}.kept", [spec.num_patches - state.regcache.delete_count])
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
