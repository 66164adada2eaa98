"""The squared-gradient weights of PTQ4ViT, and the token rows at which they are sampled.

PTQ4ViT weights the output error of a layer by squared gradients of a loss (section 3.2). The
published loss is the KL divergence between the stored float predictions and those of the model
under calibration. Calibration is parallel: while gradients are taken nothing is quantized yet, both
sides agree, and that gradient is exactly zero up to rounding noise. Here the loss is defined
instead: `u . e` with the embedding e and random unit vectors u. Over u, the expected squared
gradient is the diagonal of `J^T J` (up to a factor), the Gauss-Newton Hessian of the embedding's
squared error: label-free, without a classifier, and the same in every run.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..encoders.canonical import Encoder
from ..encoders.regcache import RegCache
from ..encoders.rotary import Survivors

IMAGES_PER_PASS = 4
"""Images whose autograd graph is alive at a time."""


@dataclass(frozen=True)
class RowSample:
    """Token positions that a search looks at, the same for inputs, outputs and gradients.

    Attributes:
        positions: `[B, n]` int64.
        weights: `[n]`, how many tokens each one stands for.
    """

    positions: Tensor
    weights: Tensor

    @classmethod
    def spread(cls, shape: tuple[int, int], special: int, limit: int) -> RowSample:
        """All special tokens, and patch tokens at an even stride, shifted from image to image.

        No random numbers: equal arguments give equal positions. Special tokens are always in,
        since in the last block of a CLS-pooled encoder no other gradient is left.

        Args:
            shape: images B and tokens N per image.
            special: leading special tokens.
            limit: most rows in all, though at least one patch per image.
        """
        batch, count = shape
        patches = count - special
        kept = min(max(limit // batch - special, 1), patches)
        offsets = torch.arange(batch, dtype=torch.float64).mul(0.6180339887498949).frac()
        spread = (torch.arange(kept) + offsets[:, None]) * (patches / kept)
        chosen = special + spread.long().clamp_max(patches - 1)
        leading = torch.arange(special).expand(batch, -1)
        weights = torch.cat([torch.ones(special), torch.full((kept,), patches / kept)])
        return cls(torch.cat([leading, chosen], dim=1), weights)

    def take(self, x: Tensor, images: slice = slice(None)) -> Tensor:
        """The sampled rows of `x [B, N, C]` or `[B, H, N, C]`, N on the axis before the last."""
        index = self.positions[images].to(x.device)
        index = index.view(len(index), *[1] * (x.ndim - 3), -1, 1)
        return torch.gather(x, -2, index.expand(*x.shape[:-2], -1, x.shape[-1]))


@dataclass
class _OutputRecord:
    """Numerics that keep the outputs, so that gradients can be asked for."""

    matmuls: bool
    outputs: dict[str, Tensor] = field(default_factory=dict)

    def linear(self, name: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        self.outputs[name] = F.linear(x, weight, bias)
        return self.outputs[name]

    def matmul(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        product = a @ b
        if self.matmuls:
            self.outputs[name] = product
        return product


@dataclass(frozen=True)
class OutputWeights:
    """Weight of every sampled output element: mean squared gradient times `RowSample.weights`.

    Stored as bfloat16: the range of float32, and rounding far below the noise of the probe.

    Attributes:
        rows: limit that was given to `RowSample.spread`.
        values: layer name -> `[B, n, C_out]`; matmul name -> `[B, H, n, C_out]`.
    """

    rows: int
    values: dict[str, Tensor]


def squared_gradients(
    encoder: Encoder,
    tokens: Tensor,
    start: int = 0,
    regcache: RegCache | None = None,
    *,
    matmuls: bool,
    rows: int,
    draws: int,
    seed: int = 0,
) -> OutputWeights:
    """Mean over `draws` of `(d(u . e) / dO)**2` for the output O of every layer from `start` on.

    Args:
        encoder: in floating point.
        tokens: `[B, N, D]` at the input of block `start`.
        start: first block.
        regcache: active, as in the calibration that uses the result.
        matmuls: also for the two attention products.
        rows: most token rows per layer; see `RowSample.spread`.
        draws: random unit vectors per image.
        seed: of the unit vectors, which are drawn on the CPU: the device does not change them.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (draws, len(tokens), encoder.spec.output_dim)
    units = F.normalize(torch.randn(shape, generator=generator), dim=-1).to(tokens)
    parts: dict[str, list[Tensor]] = {}
    for first in range(0, len(tokens), IMAGES_PER_PASS):
        images = slice(first, first + IMAGES_PER_PASS)
        with torch.inference_mode(False), torch.enable_grad():
            record = _OutputRecord(matmuls)
            leaf = tokens[images].detach().clone().requires_grad_()
            survivors = Survivors()
            hidden = encoder.run_blocks(
                leaf, start, numerics=record, regcache=regcache, survivors=survivors
            )
            embedding = encoder.pool(hidden, survivors)
            outputs = list(record.outputs.values())
            sums: list[Tensor] = []
            for draw in range(draws):
                gradients = torch.autograd.grad(
                    embedding,
                    outputs,
                    units[draw, images],
                    retain_graph=draw + 1 < draws,
                    materialize_grads=True,
                )
                squares = []
                for gradient in gradients:
                    count = (len(tokens), gradient.shape[-2])
                    sample = RowSample.spread(count, encoder.spec.num_prefix_tokens, rows)
                    weights = sample.weights.to(gradient).unsqueeze(-1) / draws
                    squares.append(sample.take(gradient, images).square() * weights)
                sums = [a + b for a, b in zip(sums, squares, strict=True)] if sums else squares
        for name, total in zip(record.outputs, sums, strict=True):
            parts.setdefault(name, []).append(total.to(torch.bfloat16))
    return OutputWeights(rows, {name: torch.cat(each) for name, each in parts.items()})
