"""The exact folds that run before calibration, on an encoder in PyTorch.

The folds themselves are numpy float64 (`regcache_export.passes`): one implementation for
simulation and graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from regcache_export.passes import CALIBRATION_FOLDS, FoldState, Pass, ValueBalance, make_folds

from ..encoders.canonical import Encoder
from ..encoders.regcache import RegCache
from ..encoders.watching import Watched

VALUE_BALANCE = ValueBalance.name

__all__ = ["CALIBRATION_FOLDS", "VALUE_BALANCE", "apply_folds", "changing_folds", "fold_encoder"]


def fold_encoder(
    encoder: Encoder,
    names: Sequence[str],
    tokens: Tensor,
    start: int = 0,
    regcache: RegCache | None = None,
) -> Encoder:
    """Apply folds by name; the function stays what it was.

    Args:
        encoder: in floating point.
        names: of `CALIBRATION_FOLDS`, and `value-balance`.
        tokens: `[B, N, D]` at the input of block `start`; `value-balance` measures ranges on them.
        start: first block that is measured.
        regcache: active while it is measured.

    Raises:
        ConfigError: an unknown name.
    """
    simple = [name for name in names if name != VALUE_BALANCE]
    encoder = apply_folds(encoder, make_folds(simple))
    if VALUE_BALANCE not in names:
        return encoder
    ranges = _out_proj_ranges(encoder, tokens, start, regcache)
    return apply_folds(encoder, [ValueBalance(ranges)])


def changing_folds(encoder: Encoder, names: Sequence[str]) -> tuple[str, ...]:
    """Of these folds, those that change a weight of this encoder.

    `value-balance` counts where it is named: what it changes, its ranges tell.
    """
    arrays = {name: weight.detach().cpu().numpy() for name, weight in encoder.weights.items()}
    state = FoldState(encoder=encoder.spec, weights=arrays, merge=encoder.merge)
    return tuple(
        name
        for name in names
        if name == VALUE_BALANCE or any(fold(state).changed for fold in make_folds([name]))
    )


def apply_folds(encoder: Encoder, folds: Sequence[Pass]) -> Encoder:
    """Apply folds to the weights; what they do not touch stays the same tensor."""
    arrays = {name: weight.detach().cpu().numpy() for name, weight in encoder.weights.items()}
    state = FoldState(encoder=encoder.spec, weights=arrays, merge=encoder.merge)
    for fold in folds:
        state = fold(state).state
    weights: dict[str, Tensor] = {}
    for name, array in state.weights.items():
        old = encoder.weights[name]
        same = array is arrays[name]
        weights[name] = old if same else torch.from_numpy(array).to(old.device, old.dtype)
    return Encoder(state.encoder, weights, encoder.merge)


def fold_block(
    encoder: Encoder, index: int, fold: Pass, register: Tensor | None
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Weights of block `index` that a fold changes, and its register `[D]` after the fold."""
    known = {n: w for n, w in encoder.weights.items() if n.startswith(f"blocks.{index}.")}
    arrays = {name: weight.detach().cpu().numpy() for name, weight in known.items()}
    cached = {} if register is None else {index: register.detach().cpu().numpy()}
    state = fold(FoldState(encoder.spec, arrays, cached)).state
    changed = {
        name: torch.from_numpy(array).to(known[name])
        for name, array in state.weights.items()
        if array is not arrays[name]
    }
    if register is None:
        return changed, None
    return changed, torch.from_numpy(state.register[index]).to(register)


def _out_proj_ranges(
    encoder: Encoder, tokens: Tensor, start: int, regcache: RegCache | None
) -> dict[str, npt.NDArray[np.float32]]:
    ranges: dict[str, npt.NDArray[np.float32]] = {}

    def see(name: str, x: Tensor) -> None:
        if name.endswith("attn.out_proj"):
            ranges[name] = x.abs().amax(dim=(0, 1)).cpu().numpy()

    encoder.run_blocks(tokens, start, numerics=Watched(see), regcache=regcache)
    return ranges
