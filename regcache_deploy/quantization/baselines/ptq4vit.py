"""`ptq4vit`: scales searched by a squared-gradient metric, twin uniform quantizers (PTQ4ViT).

Source: Yuan et al., "PTQ4ViT", arXiv 2111.12293, and its public code for the constants. What this
file leaves in float in both forms, and the publication does not: the patch embedding's weight and
the projection; a calibration here starts from hidden states, and RegCache concerns the blocks.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...encoders.canonical import Encoder
from ...encoders.regcache import RegCache
from ..gradients import IMAGES_PER_PASS, OutputWeights, RowSample, squared_gradients
from ..nonuniform import ACTIVATION_MINIMUM, TwinGelu, TwinSoftmax
from ..quantizers import Bits, Quantizer, Uniform
from ..scale_search import LinearSearch, Searched, WeightedProduct, symmetric
from ..simulate import Quantization
from ..treatment_search import Pair, Score
from .base import Baseline, BlockRecord, BlockResult, Form
from .smoothed import smoothed_block

ALPHA, BETA = 0.01, 1.2
"""Ends of the candidate scales, as fractions of the scale that covers the largest value."""

SPLITS = tuple(2.0**-m for m in range(20))
"""Candidate boundaries of the twin softmax quantizer."""

LOW_FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Candidate lower ends of the deployed fc2 input, as fractions of its least value."""

TRIAL_FRACTIONS = 12
"""About so many scales are tried while treatments of an input are compared."""


class PTQ4ViT(Baseline):
    """Hessian-guided search of every scale, with the inputs of the float model (parallel).

    Scales of linears and attention products are `D0 * (ALPHA + i * (BETA - ALPHA) / candidates)`,
    `D0 = max|x| / (2**(bits-1) - 0.5)`; one for each of W_q, W_k, W_v, one for every other weight,
    one for each operand. A candidate's score is the output error weighted by squared gradients of
    a defined probe (`gradients.squared_gradients` says why not by those of the published loss),
    summed over a fixed sample of token rows; ranges are taken over all rows.

    Ending a round early is exact: one that changes no scale would repeat itself.
    """

    name: ClassVar[str] = "ptq4vit"
    differences: ClassVar[tuple[str, ...]] = (
        "q, k and v operands: searched symmetric scale -> float attention products",
        "post-softmax operand: twin uniform -> float attention products",
        "fc2 input: twin uniform -> asymmetric per-tensor codes with searched range",
    )

    def __init__(
        self,
        bits: Bits | None = None,
        form: Form = "deploy",
        candidates: int = 100,
        rounds: int = 3,
        draws: int = 4,
        rows: int = 2048,
        seed: int = 0,
    ) -> None:
        """Choose the effort.

        Args:
            bits: widths.
            form: as published, or as deployed.
            candidates: scales per search step.
            rounds: passes over weight and activation; at most.
            draws: random probes per image.
            rows: most token rows per layer that a score looks at.
            seed: of the probes.
        """
        super().__init__(bits, form)
        self.rounds, self.draws, self.rows, self.seed = rounds, draws, rows, seed
        self.fractions = [ALPHA + i * (BETA - ALPHA) / candidates for i in range(candidates)]

    def fast(self) -> PTQ4ViT:
        """20 candidates and one round, which the publication's own ablation finds sufficient."""
        quick = PTQ4ViT(self.bits, self.form, 20, 1, draws=2, rows=1024, seed=self.seed)
        return quick.like(self)

    def prepare(
        self, encoder: Encoder, tokens: Tensor, start: int, regcache: RegCache | None
    ) -> OutputWeights:
        return squared_gradients(
            encoder,
            tokens,
            start,
            regcache,
            matmuls=self.form == "paper",
            rows=self.rows,
            draws=self.draws,
            seed=self.seed,
        )

    def calibrate_block(
        self,
        index: int,
        encoder: Encoder,
        record: BlockRecord,
        register: Tensor | None,
        context: Any,
    ) -> BlockResult:
        weights: OutputWeights = context
        special, warnings = encoder.spec.num_prefix_tokens, []
        linears, matmuls, factors = {}, {}, {}
        for name, x in record.inputs.items():
            if not x.any():
                warnings.append(f"the input of {name} is zero on every calibration image")
            output_weights = _or_ones(name, weights.values[name], warnings).flatten(0, 1)
            sample = RowSample.spread((x.shape[0], x.shape[1]), special, weights.rows)
            weight, bias = (encoder.weights[f"{name}.{part}"] for part in ("weight", "bias"))
            search = partial(self._quantizers, encoder, name, sample, output_weights)
            coarse = self.fractions[:: max(len(self.fractions) // TRIAL_FRACTIONS, 1)]
            chosen = record.chooser.choose(
                name,
                x,
                weight,
                bias,
                partial(search, self.fractions, self.rounds),
                partial(search, coarse, 1),
            )
            linears[name] = chosen.layer
            if chosen.factors is not None:
                factors[name] = chosen.factors
        if self.form == "paper":
            for name, (a, b) in record.operands.items():
                sample = RowSample.spread((a.shape[0], a.shape[2]), special, weights.rows)
                product = WeightedProduct(
                    sample.take(a).split(IMAGES_PER_PASS),
                    b.split(IMAGES_PER_PASS),
                    _or_ones(name, weights.values[name], warnings),
                )
                search_product = self._mixing if name.endswith("attn.pv") else self._logits
                matmuls[name] = search_product(product, a, b)
        result = BlockResult(Quantization(linears, matmuls), warnings=tuple(warnings))
        return smoothed_block(encoder, index, result, factors, register)

    def _quantizers(
        self,
        encoder: Encoder,
        name: str,
        sample: RowSample,
        importance: Tensor,
        fractions: list[float],
        rounds: int,
        x: Tensor,
        weight: Tensor,
        score: Score,
    ) -> Pair:
        """The search of one linear: its own weighted error decides, not `score`."""
        is_fc2 = name.endswith("mlp.fc2")
        searched = (
            self._fc2_input(encoder, x, fractions) if is_fc2 else self._symmetric(x, fractions)
        )
        rows = sample.take(x).flatten(0, 1)
        groups = 3 if name.endswith("attn.qkv") else 1
        search = LinearSearch(
            searched, rows, weight, groups, self.bits.weight, importance, fractions
        )
        found = search.run(rounds)
        return found.input, found.weight

    def _symmetric(self, x: Tensor, fractions: list[float]) -> Searched:
        return Searched(partial(symmetric, self.bits.activation, x.abs().max()), (fractions,))

    def _fc2_input(self, encoder: Encoder, x: Tensor, fractions: list[float]) -> Searched:
        bits = self.bits.activation
        low, high = x.min().clamp_max(0), x.max().clamp_min(0)
        if self.form == "deploy":

            def asymmetric(high_fraction: float, low_fraction: float) -> Uniform:
                return Uniform.asymmetric(low * low_fraction, high * high_fraction, bits)

            return Searched(asymmetric, (fractions, LOW_FRACTIONS))
        if encoder.spec.activation not in ACTIVATION_MINIMUM:
            # a gated product has no least value; the publication has only the other MLP
            return self._symmetric(x, fractions)
        minimum = ACTIVATION_MINIMUM[encoder.spec.activation]

        def twin(fraction: float) -> TwinGelu:
            return TwinGelu(symmetric(bits, high, fraction).scale, minimum, bits)

        return Searched(twin, (fractions,))

    def _logits(
        self, product: WeightedProduct, a: Tensor, b: Tensor
    ) -> tuple[Quantizer, Quantizer]:
        """Scales of the query operand `a [B, H, N, d]` and the key operand `b [B, H, d, T]`."""
        bits = self.bits.activation
        make_left, make_right = (partial(symmetric, bits, x.abs().max()) for x in (a, b))
        left = right = 1.0
        for _ in range(self.rounds):
            before = left, right
            left = product.search_left(make_left, self.fractions, left, make_right(right))
            right = product.search_right(make_right, self.fractions, right, make_left(left))
            if (left, right) == before:
                break
        return make_left(left), make_right(right)

    def _mixing(
        self, product: WeightedProduct, a: Tensor, b: Tensor
    ) -> tuple[Quantizer, Quantizer]:
        """Split of the probabilities `a [B, H, N, T]`, scale of the values `b [B, H, T, d]`.

        As published, the split is searched against values that are not quantized, so nothing
        that a second round could see depends on the first.
        """
        bits = self.bits.activation
        make_twin = partial(TwinSoftmax, bits=bits)
        probabilities = make_twin(product.search_left(make_twin, SPLITS, 1.0, None))
        make = partial(symmetric, bits, b.abs().max())
        return probabilities, make(product.search_right(make, self.fractions, 1.0, probabilities))


def _or_ones(name: str, weights: Tensor, warnings: list[str]) -> Tensor:
    """The weights, or ones where the embedding does not depend on the layer at all."""
    if weights.any():
        return weights
    warnings.append(f"the embedding does not depend on {name}; its scales minimise plain error")
    return torch.ones_like(weights)
