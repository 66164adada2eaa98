"""Inputs treated per channel: what is chosen, that it is exact, and that it does no harm."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from regcache_deploy.encoders.canonical import Encoder
from regcache_deploy.encoders.regcache import RegCache
from regcache_deploy.errors import ConfigError
from regcache_deploy.quantization.baselines import make_baseline
from regcache_deploy.quantization.baselines.base import Baseline
from regcache_deploy.quantization.baselines.ptq4vit import PTQ4ViT
from regcache_deploy.quantization.baselines.repqvit import RepQViT
from regcache_deploy.quantization.baselines.table import Deployment, tensor_table
from regcache_deploy.quantization.encoder_folds import apply_folds
from regcache_deploy.quantization.gradients import RowSample
from regcache_deploy.quantization.output_error import OutputError, Reading
from regcache_deploy.quantization.quantizers import Bits, Uniform
from regcache_deploy.quantization.simulate import (
    Calibration,
    LinearQuantization,
    Quantization,
    SimulatedNumerics,
)
from regcache_deploy.quantization.treated_input import UNTREATED, TreatedInput
from regcache_deploy.quantization.treatment import ROLES, Treatment
from regcache_deploy.quantization.treatment_search import HARMLESS, WORTH, Rule, smoothing_factors
from regcache_export.passes import FoldState, Smoothing
from tests.tiny_plans import seeded, tame_encoder, tiny_encoder, tiny_images, tiny_regcache

EXACT = 1e-12

EVERYTHING = Treatment(ROLES, 4)

FACTORS = {
    f"blocks.{index}.{role}": np.exp2(np.random.default_rng(index).integers(-9, 9, 48))
    for index in range(3)
    for role in ("attn.qkv", "attn.out_proj", "mlp.fc1")
}


@pytest.fixture(autouse=True)
def _no_grad(one_thread: None) -> Iterator[None]:
    with torch.no_grad():
        yield


def spiked(encoder: Encoder, factor: float = 300.0) -> Encoder:
    """The same sizes, with one hidden unit of block 1 whose activations are huge."""
    weights = {name: w.clone() for name, w in encoder.weights.items()}
    weights["blocks.1.mlp.fc1.weight"][7] *= factor
    weights["blocks.1.mlp.fc2.weight"][:, 7] /= factor
    return encoder.replace(weights)


def small_baseline(name: str, treatment: Treatment, bits: Bits | None = None) -> Baseline:
    baseline = make_baseline(name, bits)
    if isinstance(baseline, PTQ4ViT):
        baseline = PTQ4ViT(bits, candidates=40, rounds=1, draws=1, rows=256)
    baseline.treatment = treatment
    return baseline


def calibrate(
    name: str,
    treatment: Treatment,
    encoder: Encoder,
    regcache: RegCache | None = None,
    bits: Bits | None = None,
) -> Calibration:
    tokens = encoder.embed(tiny_images(8, seed=3))
    return small_baseline(name, treatment, bits).calibrate(encoder, tokens, regcache=regcache)


def error(calibration: Calibration, encoder: Encoder, regcache: RegCache | None = None) -> float:
    images = tiny_images(16, seed=4)
    exact = encoder(images, regcache=regcache)
    found = calibration.encoder(images, calibration.numerics(), calibration.regcache)
    return float((found - exact).norm() / exact.norm())


def test_the_fold_keeps_the_function_and_the_register_follows() -> None:
    single = tiny_encoder(layer_scale=True)
    encoder = Encoder(single.spec, {name: w.double() for name, w in single.weights.items()})
    cache = tiny_regcache(encoder)
    register = {index: v.double() for index, v in cache.register.items()}
    images = tiny_images(3).double()
    before = encoder(images, regcache=RegCache(cache.config, register))
    arrays = {name: w.numpy() for name, w in encoder.weights.items()}
    state = FoldState(encoder.spec, arrays, {i: v.numpy() for i, v in register.items()})
    changed = Smoothing(FACTORS)(state).state
    folded = Encoder(
        encoder.spec, {n: torch.from_numpy(np.asarray(w)) for n, w in changed.weights.items()}
    )
    moved = RegCache(cache.config, {i: torch.from_numpy(v) for i, v in changed.register.items()})
    assert any((moved.register[i] != register[i]).any() for i in register)
    for block, value in register.items():
        # keys are the same, values are divided as those of every token are
        old, new = encoder.prefix_kv(block, value), folded.prefix_kv(block, moved.register[block])
        divisor = torch.from_numpy(FACTORS[f"blocks.{block}.attn.out_proj"]).view(1, 3, 1, 16)
        assert torch.equal(old[0], new[0])
        assert torch.equal(old[1] / divisor, new[1])
    # powers of two change no digit of any product
    assert torch.equal(folded(images, regcache=moved), before)


def test_smoothing_in_single_precision_changes_no_bit() -> None:
    encoder = tame_encoder()
    images = tiny_images(3)
    folded = apply_folds(encoder, [Smoothing(FACTORS)])
    assert (
        folded.weights["blocks.0.mlp.fc1.weight"] != encoder.weights["blocks.0.mlp.fc1.weight"]
    ).any()
    assert torch.equal(folded(images), encoder(images))


def test_a_treated_product_is_exact_without_rounding() -> None:
    """In float64, with a quantizer that rounds nothing away, only the formula is left."""
    x, weight, bias = seeded(2, 5, 80), seeded(48, 80, seed=1), seeded(48, seed=2)
    treated = TreatedInput(
        torch.exp2(torch.arange(80) % 17 - 8.0), torch.tensor([3, 40, 41], dtype=torch.int64)
    )

    def fine(scale: float) -> Uniform:
        step = torch.tensor(scale, dtype=torch.float64)
        return Uniform(step, torch.zeros_like(step), 62, signed=True)

    layer = LinearQuantization(fine(2.0**-46), fine(2.0**-46), treated)
    found = SimulatedNumerics(Quantization({"l": layer})).linear("l", x, weight, bias)
    expected = F.linear(x, weight, bias)
    assert (found - expected).abs().max() <= EXACT * expected.abs().max()
    plain = replace(layer, treated=UNTREATED)
    assert torch.equal(plain.treated.input(x), x)


def test_channels_in_float_are_exact() -> None:
    """However coarse the codes, a channel in float comes through with every digit."""
    x, weight, bias = torch.randn(1, 9, 80), torch.randn(48, 80), torch.zeros(48)
    only = torch.zeros_like(x)
    only[..., [5, 60]] = x[..., [5, 60]] * 1e4
    treated = TreatedInput(float_channels=torch.tensor([5, 60]))
    layer = LinearQuantization(
        Uniform.symmetric(torch.tensor(1.0), 2),
        Uniform.symmetric(weight.abs().amax(1, keepdim=True), 2),
        treated,
    )
    found = SimulatedNumerics(Quantization({"l": layer})).linear("l", only, weight, bias)
    exact = F.linear(only.double(), weight.double())
    assert (found - exact).abs().max() <= 1e-6 * exact.abs().max()


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.95, 1.0])
def test_factors_are_powers_of_two_around_one(alpha: float) -> None:
    largest = torch.tensor([0.0, 1e-30, 1.0, 3.0, 1e30, 2.0])
    factors = smoothing_factors(largest, torch.tensor([1.0, 1.0, 0.0, 2.0, 1.0, 1.0]), alpha)
    assert factors[0] == 1  # a silent channel
    assert torch.isfinite(factors).all()
    assert (torch.frexp(factors).mantissa == 0.5).all()
    assert factors.min() >= 2.0**-12
    assert factors.max() <= 2.0**12
    assert (smoothing_factors(torch.zeros(4), torch.ones(4), alpha) == 1).all()
    assert (smoothing_factors(torch.ones(4), torch.zeros(4), alpha) == 1).all()


@pytest.mark.parametrize("name", ["naive", "ptq4vit", "repqvit"])
@pytest.mark.parametrize("with_regcache", [False, True])
def test_a_spike_is_treated_and_the_error_falls(name: str, with_regcache: bool) -> None:
    encoder = spiked(tame_encoder())
    regcache = tiny_regcache(encoder) if with_regcache else None
    plain = error(calibrate(name, Treatment(), encoder, regcache), encoder, regcache)
    for treatment in (Treatment(("fc2",)), Treatment(float_channels=1), EVERYTHING):
        found = calibrate(name, treatment, encoder, regcache)
        assert found.quantization.linears["blocks.1.mlp.fc2"].treated
        assert error(found, encoder, regcache) < 0.8 * plain


def inputs_of(encoder: Encoder, tokens: Tensor) -> dict[str, Tensor]:
    """Inputs of all linears in the float model."""
    found: dict[str, Tensor] = {}

    class Watch(SimulatedNumerics):
        def linear(self, name: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            found[name] = x
            return F.linear(x, weight, bias)

    encoder.run_blocks(tokens, numerics=Watch(Quantization()))
    return found


@pytest.mark.parametrize("name", ["naive", "ptq4vit", "repqvit"])
@pytest.mark.parametrize("bits", [Bits(), Bits(4, 4)], ids=str)
def test_no_choice_is_worse_than_none_at_its_own_linear(name: str, bits: Bits) -> None:
    encoder = spiked(tame_encoder(), 20.0)
    tokens = encoder.embed(tiny_images(8, seed=3))
    baseline = small_baseline(name, EVERYTHING, bits)
    chooser, treated = baseline.chooser(encoder.spec), 0
    for linear, x in inputs_of(encoder, tokens).items():
        weight, bias = (encoder.weights[f"{linear}.{part}"] for part in ("weight", "bias"))
        rules = rules_of(baseline, encoder, tokens, linear, x)
        found = chooser.choose(linear, x, weight, bias, *rules)
        none = replace(chooser, treatment=Treatment())
        plain = none.choose(linear, x, weight, bias, *rules).layer
        assert not plain.treated
        layer = found.layer
        if found.factors is not None:
            layer = replace(layer, treated=TreatedInput(multiplier=1 / found.factors))
        judge = OutputError(linear, x, weight, bias, chooser.reading)
        assert judge(layer) <= judge(plain)
        treated += bool(layer.treated)
    assert treated


def rules_of(
    baseline: Baseline, encoder: Encoder, tokens: Tensor, name: str, x: Tensor
) -> list[Rule]:
    """The baseline's rule for one linear, and the cheap one where it has one."""
    if isinstance(baseline, PTQ4ViT):
        weights = baseline.prepare(encoder, tokens, 0, None)
        special = encoder.spec.num_prefix_tokens
        sample = RowSample.spread((x.shape[0], x.shape[1]), special, weights.rows)
        importance = weights.values[name].flatten(0, 1)
        search = partial(baseline._quantizers, encoder, name, sample, importance)
        return [partial(search, fractions, 1) for fractions in (baseline.fractions, [0.5, 1.0])]
    owner: Any = baseline.record() if isinstance(baseline, RepQViT) else baseline
    return [owner._quantizers]


def test_what_stays_in_the_graph_halves_an_error_that_matters() -> None:
    encoder = tame_encoder()  # without outliers
    found = calibrate("naive", Treatment(("fc2",), 4), encoder)
    plain = calibrate("naive", Treatment(), encoder)
    tokens = encoder.embed(tiny_images(8, seed=3))
    for name, layer in found.quantization.linears.items():
        if not layer.treated:
            continue
        inputs = inputs_of(plain.encoder, tokens)[name]
        weight, bias = (plain.encoder.weights[f"{name}.{part}"] for part in ("weight", "bias"))
        judge = OutputError(name, inputs, weight, bias, Reading.of(encoder.spec))
        before = judge(plain.quantization.linears[name])
        assert before > HARMLESS
        assert judge(layer) <= WORTH * before


@pytest.mark.parametrize("name", ["naive", "ptq4vit", "repqvit"])
def test_the_folded_encoder_is_the_same_function(name: str) -> None:
    encoder = spiked(tame_encoder())
    regcache = tiny_regcache(encoder)
    found = calibrate(name, EVERYTHING, encoder, regcache)
    images = tiny_images(4)
    assert found.regcache is not None
    got = found.encoder(images, regcache=found.regcache)
    exact = encoder(images, regcache=regcache)
    assert (got - exact).abs().max() <= 1e-4 * exact.abs().max()
    # a linear that leaves the quantized ones is a plain product again
    rest = found.quantization.only("blocks.1.mlp.fc2")
    back = found.encoder(
        images, SimulatedNumerics(rest.without(["blocks.1.mlp.fc2"])), found.regcache
    )
    assert torch.equal(back, got)


def test_codes_of_values_survive_the_smoothing_of_out_proj() -> None:
    encoder = tame_encoder()
    weights = {name: w.clone() for name, w in encoder.weights.items()}
    weights["blocks.0.attn.qkv.weight"][96:99] *= 50
    encoder = encoder.replace(weights)
    plain = calibrate("repqvit", Treatment(), encoder)
    found = calibrate("repqvit", Treatment(("out_proj",)), encoder)
    name = "blocks.0.attn.qkv"
    assert (
        found.encoder.weights[f"{name}.weight"] != plain.encoder.weights[f"{name}.weight"]
    ).any()
    codes = []
    for calibration in (plain, found):
        quantizer = calibration.quantization.linears[name].weight
        assert isinstance(quantizer, Uniform)
        codes.append(quantizer.codes(calibration.encoder.weights[f"{name}.weight"]))
    assert torch.equal(*codes)
    assert error(found, encoder) < error(plain, encoder)


def test_float_layers_are_not_treated() -> None:
    encoder = spiked(tame_encoder())
    baseline = small_baseline("naive", EVERYTHING)
    baseline.keep_float = frozenset({"blocks.1.mlp.fc2", "blocks.1.attn.out_proj"})
    tokens = encoder.embed(tiny_images(8, seed=3))
    found = baseline.calibrate(encoder, tokens)
    plain = small_baseline("naive", Treatment()).calibrate(encoder, tokens)
    assert "blocks.1.mlp.fc2" not in found.quantization.linears
    name = "blocks.1.attn.out_proj.weight"
    assert torch.equal(found.encoder.weights[name], plain.encoder.weights[name])


def test_the_identity_tells_treatments_apart() -> None:
    plain, treated = (small_baseline("naive", t).identity() for t in (Treatment(), EVERYTHING))
    assert plain != treated
    kept = make_baseline("naive")
    kept.kept_inputs = {"blocks.0.mlp.fc2": TreatedInput(float_channels=torch.tensor([3]))}
    assert kept.identity() != plain
    assert small_baseline("ptq4vit", EVERYTHING).fast().treatment == EVERYTHING
    assert RepQViT(range_rule="output_error").identity() != RepQViT().identity()


def test_the_table_of_quantizers_tells() -> None:
    encoder = spiked(tame_encoder())
    found = calibrate("repqvit", Treatment(float_channels=1), encoder)
    notes = found.quantization.treatment_notes()
    assert notes == {"blocks.1.mlp.fc2.input": ", 1 channels in float"}
    deployment = Deployment(treated=notes, range_rule="output_error")
    rows = {
        row["tensor"]: row["graph"]
        for row in tensor_table("repqvit", Bits(), encoder.spec, deployment)
    }
    assert rows["blocks.1.mlp.fc2.input"].endswith(
        "range by output error, 1 channels in float, 8 bits"
    )
    assert rows["blocks.0.mlp.fc2.input"].endswith("range by output error, 8 bits")
    assert "output error" not in rows["blocks.1.mlp.fc1.input"]


def test_refused_settings() -> None:
    for wrong in ({"smooth": ("mlp",)}, {"float_channels": 5}, {"alphas": (0.0,)}):
        with pytest.raises(ConfigError):
            Treatment(**wrong)
    encoder = tame_encoder()
    paper = make_baseline("naive", form="paper")
    paper.treatment = Treatment(("fc2",))
    with pytest.raises(ConfigError):
        paper.calibrate(encoder, encoder.embed(tiny_images(2)))
    with pytest.raises(ConfigError):
        RepQViT(range_rule="entropy")  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        RepQViT(form="paper", range_rule="output_error")
