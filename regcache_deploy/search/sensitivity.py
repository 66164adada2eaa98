"""Which linear layer breaks the encoder when it alone is quantized (paper, section 3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..encoders.canonical import Encoder
from ..evaluation import Objective, Score
from ..quantization.baselines import make_baseline
from ..quantization.quantizers import Bits
from ..quantization.simulate import SimulatedNumerics
from .problem import run_in_batches


@dataclass(frozen=True)
class Sensitivity:
    """Score of every layer quantized alone.

    Attributes:
        full: score of the float model.
        layers: layer name -> score with only this layer quantized, naive W8A8.
    """

    full: Score
    layers: dict[str, Score]

    @property
    def layer(self) -> str:
        """The most sensitive layer: largest loss, ties by fidelity, then the earlier one."""
        return min(self.layers, key=lambda name: self.layers[name].key)

    @property
    def block(self) -> int:
        """Its block: k of the paper."""
        return int(self.layer.split(".")[1])

    def drop(self, name: str) -> float:
        """Loss of the objective when only `name` is quantized."""
        return self.full.value - self.layers[name].value


@torch.no_grad()
def measure_sensitivity(
    encoder: Encoder,
    calibration_tokens: Tensor,
    search_tokens: Tensor,
    objective: Objective,
    batch_size: int = 64,
    advance: Callable[[int], None] = lambda n: None,
) -> Sensitivity:
    """Quantize one linear at a time, naive W8A8, and score the search images.

    The float hidden states at each block's input are carried along, so that a layer of block i
    costs only blocks i..L-1.

    Args:
        calibration_tokens: `[c, N, D]` at the input of block 0; set the ranges.
        search_tokens: `[n, N, D]` at the input of block 0.
        advance: told after every layer.
    """
    quantization = make_baseline("naive", Bits()).calibrate(encoder, calibration_tokens).quantization
    tokens, scores = search_tokens, {}
    for block in range(encoder.spec.depth):
        for name in (n for n in quantization.linears if n.startswith(f"blocks.{block}.")):
            numerics = SimulatedNumerics(quantization.only(name))
            after = run_in_batches(encoder, tokens, block, numerics=numerics, batch_size=batch_size)
            scores[name] = objective.score(encoder.pool(after))
            advance(1)
        tokens = run_in_batches(encoder, tokens, block, block + 1, batch_size=batch_size)
    return Sensitivity(objective.score(encoder.pool(tokens)), scores)
