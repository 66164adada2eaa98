"""A contract without a zero-shot head counts images that find their own altered copies."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from regcache_deploy.contract.data import JudgeData, load_judge_data, measure_drop
from regcache_deploy.data.copies import altered


def test_a_lost_copy_is_a_point() -> None:
    """Four images and their copies; one image moves to another one's copy."""
    reference = torch.eye(4).repeat(2, 1)
    found = reference.clone()
    found[3] = torch.tensor([1.0, 0, 0, 0.1])
    drop = measure_drop(reference, found, None, None, 100.0, 0, copied=True)
    assert (drop.value, drop.metric, drop.n) == (25.0, "instances", 4)
    assert drop.low < 0 < drop.high
    back = measure_drop(found, reference, None, None, 100.0, 0, copied=True)
    assert back.value == -25
    # a rotation of all features is no loss, though the cosine to them is low
    turned = reference.roll(1, dims=1)
    assert measure_drop(reference, turned, None, None, 100.0, 0, copied=True).value == 0
    assert measure_drop(reference, turned, None, None, 100.0, 0).value == 100


def test_copies_stand_behind_their_images() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
    data = JudgeData.split(pixels, None, "noise", copied=True)
    assert data.judging.shape == (16, 8, 8, 3)
    assert np.array_equal(data.judging[:8], data.judge)
    assert np.array_equal(data.judging[8:], altered(torch.from_numpy(data.judge)).numpy())
    assert np.array_equal(data.selecting(2)[:2], data.select[:2])
    assert len(data.selecting(2)) == 4
    plain = JudgeData.split(pixels, None, "noise")
    assert plain.judging is plain.judge


@pytest.mark.parametrize(
    ("pretrained", "head", "copied"),
    [("laion", False, True), (None, False, True), ("random:0", False, False), ("x", True, False)],
)
def test_random_weights_and_heads_have_no_copies(
    tmp_path: Path, pretrained: str | None, head: bool, copied: bool
) -> None:
    from PIL import Image

    for index in range(16):
        Image.new("RGB", (8, 8), (index, 2 * index, 3)).save(tmp_path / f"{index:02}.png")
    size = {"size": [8, 8], "mean": [0.5] * 3, "std": [0.5] * 3, "mode": "RGB"}
    bundle: Any = SimpleNamespace(
        manifest={"provenance": {"pretrained": pretrained, "model": "m"}},
        has_text_features=head,
        labels=(),
        preprocess=size | {"interpolation": "bicubic", "resize_mode": "shortest", "fill_color": 0},
    )
    assert load_judge_data(bundle, str(tmp_path), None, 0).copied is copied
