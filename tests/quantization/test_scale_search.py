"""PTQ4ViT's search: the sampled rows, their weights, and the scales that it finds."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from regcache_deploy.quantization.gradients import RowSample, squared_gradients
from regcache_deploy.quantization.quantizers import Uniform, symmetric_weight
from regcache_deploy.quantization.scale_search import (
    LinearSearch,
    Searched,
    WeightedProduct,
    symmetric,
)
from tests.tiny_plans import seeded, tiny_encoder, tiny_images

BITS = pytest.mark.parametrize("bits", [4, 6, 8])


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("limit", [1, 64, 100, 10_000])
def test_row_sample(limit: int) -> None:
    sample = RowSample.spread((6, 50), 1, limit)
    again = RowSample.spread((6, 50), 1, limit)
    assert torch.equal(sample.positions, again.positions)
    assert (sample.positions[:, 0] == 0).all()
    for row in sample.positions:
        assert len(set(row.tolist())) == len(row)
    assert sample.weights.sum() == pytest.approx(50)
    assert sample.positions.max() < 50
    assert sample.positions.numel() <= max(limit, 12)
    x = seeded(6, 3, 50, 4)
    expected = torch.stack([x[i][:, rows] for i, rows in enumerate(sample.positions)])
    assert torch.equal(sample.take(x), expected)
    assert torch.equal(sample.take(x[2:5], slice(2, 5)), expected[2:5])


def test_probe_is_the_gauss_newton_diagonal() -> None:
    encoder = tiny_encoder(depth=2)
    tokens = encoder.embed(tiny_images(2))
    bias = torch.zeros(2, encoder.spec.num_tokens, encoder.spec.width)

    class Shifted:
        def linear(self, name: str, x: Tensor, weight: Tensor, bias_: Tensor) -> Tensor:
            out = torch.nn.functional.linear(x, weight, bias_)
            return out + shift if name == "blocks.0.attn.out_proj" else out

        def matmul(self, name: str, a: Tensor, b: Tensor) -> Tensor:
            return a @ b

    shift = bias.requires_grad_()
    embedding = encoder.pool(encoder.run_blocks(tokens, numerics=Shifted()))
    exact = torch.zeros_like(bias)
    for unit in range(encoder.spec.output_dim):
        (row,) = torch.autograd.grad(embedding[:, unit].sum(), shift, retain_graph=True)
        exact += row.square() / encoder.spec.output_dim
    found = squared_gradients(encoder, tokens, matmuls=True, rows=10_000, draws=100)
    values = found.values["blocks.0.attn.out_proj"].float()
    assert values.sum().item() == pytest.approx(exact.sum().item(), rel=0.1)
    correlation = torch.corrcoef(torch.stack([values.flatten(), exact.detach().flatten()]))[0, 1]
    assert correlation > 0.95
    assert found.values["blocks.1.attn.pv"].shape == (2, 3, encoder.spec.num_tokens, 16)
    # of the last block's MLP, the CLS embedding sees only the CLS token
    last = found.values["blocks.1.mlp.fc2"]
    assert last[:, 0].any()
    assert not last[:, 1:].any()


def test_probe_does_not_depend_on_where_it_starts() -> None:
    encoder = tiny_encoder()
    tokens = encoder.embed(tiny_images(6))
    whole = squared_gradients(encoder, tokens, matmuls=False, rows=60, draws=2)
    later = encoder.run_blocks(tokens, stop=2)
    part = squared_gradients(encoder, later, 2, matmuls=False, rows=60, draws=2)
    for name, values in part.values.items():
        assert torch.allclose(values.float(), whole.values[name].float(), rtol=0.02, atol=1e-12)


def test_probe_runs_in_inference_mode() -> None:
    encoder = tiny_encoder()
    with torch.inference_mode():
        tokens = encoder.embed(tiny_images(2))
        found = squared_gradients(encoder, tokens, matmuls=False, rows=60, draws=1)
    assert all(values.any() for values in found.values.values())


def linear_problem(outlier: float) -> tuple[Tensor, Tensor, Tensor]:
    x, weight = seeded(600, 32).float(), seeded(24, 32, seed=1).float()
    x[5, 3] = outlier
    output_weights = torch.ones(600, 24)
    output_weights[5] = 0  # the outlier token does not matter to the embedding
    return x, weight, output_weights


@BITS
def test_search_beats_min_max_on_a_tensor_with_an_outlier(bits: int) -> None:
    x, weight, output_weights = linear_problem(60.0)
    fractions = [0.01 + i * 1.19 / 100 for i in range(100)]
    searched = Searched(lambda f: symmetric(bits, x.abs().max(), f), (fractions,))
    search = LinearSearch(searched, x, weight, 3, bits, output_weights, fractions)
    found = search.run(3)

    def error(xq: Tensor, wq: Tensor) -> float:
        return float((output_weights * (xq @ wq.T - x @ weight.T).square()).sum())

    min_max = error(
        Uniform.symmetric(x.abs().max(), bits)(x), symmetric_weight(weight, bits)(weight)
    )
    assert error(found.input(x), found.weight(weight)) < 0.3 * min_max


def test_stopping_early_does_not_change_the_winner() -> None:
    x, weight, output_weights = linear_problem(9.0)
    parts = x.split(100)
    product = WeightedProduct(parts, [weight.T] * len(parts), output_weights)
    fractions = [0.01 + i * 1.19 / 50 for i in range(50)]
    quantizers = [symmetric(6, x.abs().max(), f) for f in fractions]
    direct = [
        float((output_weights * ((q(x) - x) @ weight.T).square()).sum(dtype=torch.float64))
        for q in quantizers
    ]
    best = product.search_left(lambda f: symmetric(6, x.abs().max(), f), fractions, 1.0, None)
    assert best == fractions[min(range(50), key=lambda i: direct[i])]
    total = product.error(lambda i: quantizers[9](parts[i]), lambda i: weight.T, math.inf)
    assert total == pytest.approx(direct[9], rel=1e-4)
    assert (
        product.error(lambda i: quantizers[9](parts[i]), lambda i: weight.T, total / 2) == math.inf
    )


def test_where_every_scale_is_equal_the_largest_value_stays_inside() -> None:
    x, weight = torch.zeros(20, 8), seeded(6, 8).float()
    fractions = [0.01, 0.5, 0.98]
    searched = Searched(lambda f: symmetric(8, x.abs().max(), f), (fractions,))
    search = LinearSearch(searched, x, weight, 1, 8, torch.ones(20, 6), fractions)
    search.run(1)
    assert search.weight_state == [0.98]
    assert search.input_state == [0.98]
