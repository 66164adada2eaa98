"""The planted ViT-B/16: its sinks are where they were planted, on canvases and on noise."""

from __future__ import annotations

import planted_vit
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from regcache_deploy.data.demo_images import load_demo_images


class Largest:
    """Largest input of every fc2, by block."""

    def __init__(self) -> None:
        self.found: dict[int, float] = {}

    def linear(self, name: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if name.endswith("mlp.fc2"):
            self.found[int(name.split(".")[1])] = float(x.abs().max())
        return F.linear(x, weight, bias)

    def matmul(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        return a @ b


@pytest.mark.parametrize("seed", [0, 3])
def test_planted_block_is_where_the_outliers_are(seed: int) -> None:
    structure = planted_vit.Structure()
    planted = planted_vit.build(structure, seed)
    model = planted_vit.load(structure, seed)
    encoder, size = model.encoder, structure.image_size
    canvases = load_demo_images("search", 4, seed, preprocess_cfg=model.preprocess)
    smooth = 8 * F.avg_pool2d(torch.randn(1, 3, size, size), 15, 1, 7)
    noise = torch.randn(1, 3, size, size)
    images = torch.cat([canvases.normalized(canvases.pixels), smooth, noise])
    k, largest = structure.sink_block, Largest()
    with torch.no_grad():
        tokens = encoder.run_blocks(encoder.embed(images), 0, k + 1, largest)
    # What decides the naive quantizer's step: the marks of block k-1 must not be outliers, too.
    assert largest.found[k] > 1000
    assert all(largest.found[block] < 30 for block in range(k))
    norms = tokens.abs().amax(dim=-1)
    for row in norms:
        assert set(row.topk(structure.sinks).indices.tolist()) == set(planted.sink_tokens)
        assert float(row.max()) > 50 * float(row.median())
