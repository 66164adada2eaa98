"""PTQ4ViT: published quantizers, what of them is deployed, and that a run can be repeated."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from regcache_deploy.encoders.canonical import Encoder
from regcache_deploy.encoders.regcache import RegCache, RegCacheConfig
from regcache_deploy.errors import ConfigError, DataError
from regcache_deploy.quantization.baselines import Form, differences, make_baseline
from regcache_deploy.quantization.baselines.ptq4vit import SPLITS, PTQ4ViT
from regcache_deploy.quantization.choice import chosen_baseline
from regcache_deploy.quantization.nonuniform import ACTIVATION_MINIMUM, TwinGelu, TwinSoftmax
from regcache_deploy.quantization.plan import calibration_of, make_plan
from regcache_deploy.quantization.plan_baseline import baseline_of
from regcache_deploy.quantization.quantizers import Bits, Uniform
from regcache_deploy.quantization.simulate import Calibration
from regcache_deploy.run.options import ExportOptions
from tests.quantization.baseline_helpers import FORMS, numbers, relative_error
from tests.tiny_plans import tame_encoder, tiny_images, tiny_plan, tiny_regcache

pytestmark = pytest.mark.usefixtures("one_thread")


def baseline(form: Form, bits: int = 8) -> PTQ4ViT:
    """Between `fast` and full effort, to keep the tests short."""
    return PTQ4ViT(Bits(bits, bits), form, candidates=40, rounds=2, draws=2, rows=96)


def calibrate(
    form: Form, bits: int = 8, regcache: RegCache | None = None, encoder: Encoder | None = None
) -> Calibration:
    encoder = encoder or tame_encoder()
    tokens = encoder.embed(tiny_images(16, seed=3))
    return baseline(form, bits).calibrate(encoder, tokens, regcache=regcache)


@FORMS
@pytest.mark.parametrize("prefix", [False, True])
def test_more_bits_are_better(form: Form, prefix: bool) -> None:
    regcache = tiny_regcache(tame_encoder()) if prefix else None
    errors = [relative_error(calibrate(form, bits, regcache)) for bits in (8, 6, 4)]
    assert all(less < more for less, more in pairwise(errors)), errors
    assert errors[0] < 0.04


def test_paper_form_has_the_published_quantizers() -> None:
    calibration = calibrate("paper", 6)
    for name, layer in calibration.quantization.linears.items():
        weight = calibration.encoder.weights[f"{name}.weight"]
        if name.endswith("fc2"):
            assert isinstance(layer.input, TwinGelu)
            assert layer.input.minimum == ACTIVATION_MINIMUM["gelu"]
        else:
            assert isinstance(layer.input, Uniform)
            assert layer.input.signed
            assert layer.input.scale.numel() == 1
        assert isinstance(layer.weight, Uniform)
        groups = layer.weight.scale.flatten().chunk(3 if name.endswith("qkv") else 1)
        assert all(len(group.unique()) == 1 for group in groups)
        # each scale is one of the candidates
        for group, rows in zip(groups, weight.chunk(len(groups)), strict=True):
            fraction = float(group[0] / (rows.abs().max() / (2**5 - 0.5)))
            step = (fraction - 0.01) / (1.19 / 40)
            assert step == pytest.approx(round(step), abs=1e-3)
            assert 0 <= round(step) < 40
    assert len(calibration.quantization.matmuls) == 6
    for name, (left, right) in calibration.quantization.matmuls.items():
        if name.endswith("pv"):
            assert isinstance(left, TwinSoftmax)
            assert left.split in SPLITS
        else:
            assert isinstance(left, Uniform)
        assert isinstance(right, Uniform)
        assert right.scale.numel() == 1


@pytest.mark.parametrize("activation", sorted(ACTIVATION_MINIMUM))
def test_negative_minimum_follows_the_activation(activation: str) -> None:
    calibration = calibrate("paper", encoder=tame_encoder(activation=activation, depth=1))
    quantizer = calibration.quantization.linears["blocks.0.mlp.fc2"].input
    assert isinstance(quantizer, TwinGelu)
    assert quantizer.minimum == ACTIVATION_MINIMUM[activation]  # type: ignore[index]


def test_deploy_form_is_uniform_and_makes_a_plan() -> None:
    encoder = tame_encoder()
    regcache = tiny_regcache(encoder)
    calibration = calibrate("deploy", regcache=regcache)
    assert not calibration.quantization.matmuls
    plan = make_plan(calibration, regcache_config=regcache.config)
    for name, layer in plan.linears.items():
        assert layer.input.signed != name.endswith("fc2")
        assert not layer.input.per_channel
        assert layer.weight.signed
        assert not layer.weight.zero_point.any()
        if layer.input.signed:
            assert not layer.input.zero_point.any()
    with pytest.raises(ConfigError, match="paper form"):
        make_plan(calibrate("paper"))


@FORMS
def test_calibration_can_be_repeated(form: Form) -> None:
    encoder = tame_encoder(depth=1)
    first, second = (numbers(calibrate(form, encoder=encoder)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    torch.set_num_threads(2)
    threaded = numbers(calibrate(form, encoder=encoder))
    assert all(torch.equal(a, b) for a, b in zip(first, threaded, strict=True))


def test_a_later_start_finds_the_same_scales() -> None:
    encoder = tame_encoder()
    tokens = encoder.embed(tiny_images(16, seed=3))
    regcache = tiny_regcache(encoder, RegCacheConfig(1, 2, 2, 3))
    whole = baseline("deploy").calibrate(encoder, tokens, regcache=regcache)
    later = encoder.run_blocks(tokens, stop=1)
    part = baseline("deploy").calibrate(encoder, later, 1, regcache)
    assert sorted(part.quantization.linears) == [
        name for name in sorted(whole.quantization.linears) if not name.startswith("blocks.0.")
    ]
    for name, layer in part.quantization.linears.items():
        for got, expected in zip(
            (layer.input, layer.weight),
            (whole.quantization.linears[name].input, whole.quantization.linears[name].weight),
            strict=True,
        ):
            assert isinstance(got, Uniform)
            assert isinstance(expected, Uniform)
            assert torch.allclose(got.scale, expected.scale)


def test_probes_follow_the_seed() -> None:
    """`--seed` is for every random choice."""
    options = ExportOptions(baseline="ptq4vit")
    encoder = tame_encoder(depth=1)
    tokens = encoder.embed(tiny_images(16, seed=3))
    found = []
    for seed in (0, 0, 1):
        chosen = chosen_baseline(options, seed)
        assert isinstance(chosen, PTQ4ViT)
        probes = chosen.fast().prepare(encoder, tokens, 0, None)
        found.append(next(iter(probes.values.values())))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    made = tiny_plan()
    plan = replace(made, provenance={**made.provenance, "baseline": "ptq4vit", "seed": 7})
    for asked, wanted in ((None, 7), (3, 3)):
        again = baseline_of(plan, calibration_of(plan), asked)
        assert again.identity()["seed"] == wanted


def test_search_is_better_than_naive() -> None:
    encoder = tame_encoder()
    tokens = encoder.embed(tiny_images(16, seed=3))
    naive = make_baseline("naive", Bits(4, 4)).calibrate(encoder, tokens)
    assert relative_error(calibrate("deploy", 4)) < 0.8 * relative_error(naive)


def test_fast_is_a_cheaper_setting_of_the_same_baseline() -> None:
    full = make_baseline("ptq4vit", Bits(6, 6), "paper")
    fast = full.fast()
    assert isinstance(full, PTQ4ViT)
    assert isinstance(fast, PTQ4ViT)
    assert (len(full.fractions), full.rounds) == (100, 3)
    assert (len(fast.fractions), fast.rounds) == (20, 1)
    assert (fast.bits, fast.form) == (full.bits, "paper")
    assert make_baseline("naive").fast().name == "naive"


@FORMS
def test_dead_layers_warn_and_stay_finite(form: Form) -> None:
    encoder = tame_encoder(depth=2)
    dead = {
        name: torch.zeros_like(encoder.weights[name])
        for name in ("blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc1.bias", "blocks.1.mlp.fc2.weight")
    }
    calibration = calibrate(form, encoder=encoder.replace(dead))
    assert any("blocks.0.mlp.fc2 is zero" in line for line in calibration.warnings)
    assert any("does not depend on blocks.1.mlp.fc1" in line for line in calibration.warnings)
    assert relative_error(calibration) < 0.05


def test_bad_data_is_a_data_error() -> None:
    encoder = tame_encoder()
    tokens = encoder.embed(tiny_images(2))
    tokens[1, 3, 5] = float("nan")
    with pytest.raises(DataError, match=r"blocks\.0\.attn\.qkv"):
        baseline("deploy").calibrate(encoder, tokens)
    with pytest.raises(DataError, match="at least one"):
        baseline("deploy").calibrate(encoder, tokens[:0])


def test_differences_are_told() -> None:
    assert differences("naive") == []
    for name in ("ptq4vit", "repqvit"):
        assert all(differences(name))
        assert all("->" in line or "widened" in line for line in differences(name))
    with pytest.raises(ConfigError, match="unknown baseline"):
        differences("awq")
