"""Layer scale into the rows of out_proj and fc2."""

from __future__ import annotations

from dataclasses import replace

from .base import FoldState, PassResult, Stage


class LayerScale:
    """`ls * (W x + b) = (diag(ls) W) x + ls b`.

    A layer scale may be negative or zero, which no runtime takes as a quantization scale; the
    weight itself may be. So it runs before the weights are quantized.
    """

    name = "layer-scale"
    stage: Stage = "calibration"
    requires = "nothing between the projection and its layer scale"
    ensures = "the encoder has no layer scale"

    def __call__(self, state: FoldState) -> PassResult:
        if not state.encoder.layer_scale:
            return PassResult(state, note="the encoder has none")
        weights = dict(state.weights)
        changed = []
        for index in range(state.encoder.depth):
            for scale, role in (("ls1", "attn.out_proj"), ("ls2", "mlp.fc2")):
                name = f"blocks.{index}.{role}"
                factor = state.double(f"blocks.{index}.{scale}")
                weights[f"{name}.weight"] = state.double(f"{name}.weight") * factor[:, None]
                weights[f"{name}.bias"] = state.double(f"{name}.bias") * factor
                del weights[f"blocks.{index}.{scale}"]
                changed.append(name)
        spec = replace(state.encoder, layer_scale=False)
        return PassResult(replace(state, encoder=spec, weights=weights), tuple(changed))
