"""Variants of the demo: what is edited, and that the float function stays."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from regcache_deploy.data.demo_images import load_demo_images
from regcache_deploy.demo.model import load_demo
from regcache_deploy.encoders.canonical import FloatNumerics
from regcache_deploy.encoders.demo_names import VARIANTS
from regcache_deploy.encoders.demo_variants import ADDED_UNITS
from regcache_deploy.encoders.load import LoadedModel, load_model
from regcache_deploy.errors import ConfigError, ModelError

BLOCK = 2
FC2 = f"blocks.{BLOCK}.mlp.fc2"


class _Fc2Input(FloatNumerics):
    def linear(self, name: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if name == FC2:
            self.largest = float(x.abs().max())
        return super().linear(name, x, weight, bias)


@functools.cache
def loaded(name: str) -> LoadedModel:
    return load_model(name)


@functools.cache
def images() -> Tensor:
    found = load_demo_images("search", 24, preprocess_cfg=loaded("demo").preprocess)
    return found.normalized(found.pixels)


@functools.cache
def run(name: str) -> tuple[Tensor, float]:
    """Features, and the largest entry at the input of the planted fc2."""
    numerics = _Fc2Input()
    with torch.no_grad():
        return loaded(name).encoder(images(), numerics), numerics.largest


def test_a_dense_column_leaves_the_float_function_as_it_is() -> None:
    assert load_demo().sink_block == BLOCK
    features, largest = run("demo-dense")
    wanted, spike = run("demo")
    assert (features - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert largest == pytest.approx(spike)


def test_the_dense_column_is_of_ordinary_size_and_cancels() -> None:
    plain, dense = (loaded(name).encoder for name in ("demo", "demo-dense"))
    assert dense.spec.mlp_width == plain.spec.mlp_width + ADDED_UNITS
    added = dense.weights[f"{FC2}.weight"][:, plain.spec.mlp_width :]
    assert torch.equal(added[:, 0], -added[:, 1])
    usual = plain.weights[f"{FC2}.weight"].std()
    assert 0.3 < added[:, 0].std() / usual < 3
    unit = load_demo().config["plant"]["spike_unit"]
    rows = dense.weights[f"blocks.{BLOCK}.mlp.fc1.weight"]
    assert torch.equal(rows[unit], rows[plain.spec.mlp_width])
    assert not dense.weights["blocks.3.mlp.fc2.weight"][:, plain.spec.mlp_width :].any()


@pytest.mark.parametrize(("name", "factor"), [("demo-mild-8", 8), ("demo-mild-32", 32)])
def test_a_milder_spike_is_smaller_by_its_factor(name: str, factor: int) -> None:
    features, largest = run(name)
    wanted, spike = run("demo")
    assert spike / largest == pytest.approx(factor, rel=0.02)
    assert torch.cosine_similarity(features, wanted).min() > 0.999


def test_variants_say_what_they_are() -> None:
    for name in VARIANTS:
        model = loaded(name)
        assert model.name == name
        caution = model.caution or ""
        assert "synthetic" in caution
        assert "planted" in caution
        assert VARIANTS[name].caution in caution
    assert loaded("demo").weights_sha256() != loaded("demo-dense").weights_sha256()
    assert loaded("demo-dense").text_head is not None


def test_unknown_variants_and_weights_are_refused() -> None:
    with pytest.raises(ModelError, match="demo-mild-8"):
        load_model("demo-wild")
    with pytest.raises(ConfigError, match="brings its own weights"):
        load_model("demo-dense", "openai")
