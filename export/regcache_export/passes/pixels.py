"""Preprocessing's mean and std into the patch convolution, so that the graph takes raw pixels."""

from __future__ import annotations

import numpy as np

from ..errors import BundleError
from .base import FoldState, PassResult, Stage

WHITE = 255.0


class BakePreprocess:
    """`conv((p / 255 - mean) / std) = conv'(p)`: stride equals kernel and nothing is padded.

    Where the first convolution of a stem pads, its zeros stand for pixels of the mean color, so
    the mean is subtracted in the graph, and only the scale is folded.

    Args:
        layout: `nchw` or `nhwc`, of the uint8 input.
    """

    name = "bake-preprocess"
    stage: Stage = "export"
    requires = "mean and std in the plan"
    ensures = "the graph's input is uint8 pixels"

    def __init__(self, layout: str) -> None:
        self.layout = layout

    def __call__(self, state: FoldState) -> PassResult:
        try:
            mean = np.asarray(state.preprocess["mean"], dtype=np.float64).reshape(3)
            std = np.asarray(state.preprocess["std"], dtype=np.float64).reshape(3)
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(
                "--bake-preprocess needs three numbers each for mean and std in the plan's "
                f"preprocessing ({error}); search again with a model that states them"
            ) from error
        if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
            raise BundleError(f"preprocessing has std {std.tolist()}; it must be positive")
        stem = state.encoder.stem
        name = "stem.0" if stem else "patch_embed"
        weight = state.double(f"{name}.weight")
        per_channel = (1, 3, 1, 1)
        weights = {f"{name}.weight": weight / (WHITE * std.reshape(per_channel))}
        if stem and stem[0].padding:
            weights["pixels.mean"] = WHITE * mean.reshape(per_channel)
        else:
            offset = (weight * (mean / std).reshape(per_channel)).sum(axis=(1, 2, 3))
            weights[f"{name}.bias"] = state.double(f"{name}.bias") - offset
        return PassResult(state.changed(weights, pixels=self.layout), (name,))
