"""Every fold is an identity: checked in float64, to 1e-12, register included."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from regcache_deploy.encoders import canonical as canonical_module
from regcache_deploy.encoders.canonical import Encoder
from regcache_deploy.encoders.regcache import RegCache
from regcache_deploy.quantization.encoder_folds import CALIBRATION_FOLDS, fold_encoder
from regcache_deploy.quantization.plan import make_plan
from regcache_deploy.quantization.quantizers import Uniform
from regcache_deploy.quantization.simulate import Calibration, LinearQuantization, Quantization
from regcache_export.errors import BundleError
from regcache_export.graph import build_model
from regcache_export.passes import FoldState, Pass, Reparametrization, ValueBalance, make_folds
from regcache_export.passes.centre_shift import centred
from regcache_export.passes.pixels import BakePreprocess
from regcache_export.passes.value_balance import balance_ratio
from regcache_export.plan import TensorQuant
from regcache_export.targets import GraphOptions
from tests.tiny_plans import (
    PREPROCESS,
    naive_calibration,
    tiny_encoder,
    tiny_images,
    tiny_plan,
    tiny_regcache,
)

EXACT = 1e-12

BALANCE_RANGES = {f"blocks.{index}.attn.out_proj": np.geomspace(0.01, 40, 48) for index in range(3)}

CHANNELS = {
    f"blocks.{index}.{role}": (
        np.random.default_rng(index).uniform(0.1, 10, 48),
        np.random.default_rng(index + 3).normal(0, 5, 48),
    )
    for index in range(3)
    for role in ("attn.qkv", "mlp.fc1")
}


def double(encoder: Encoder) -> Encoder:
    return Encoder(encoder.spec, {name: w.double() for name, w in encoder.weights.items()})


def double_cache(cache: RegCache) -> RegCache:
    return RegCache(cache.config, {index: v.double() for index, v in cache.register.items()})


def run_fold(encoder: Encoder, cache: RegCache, fold: Pass) -> tuple[FoldState, Encoder, RegCache]:
    """The fold on float64 weights, and what it made of encoder and register."""
    state = FoldState(
        encoder=encoder.spec,
        weights={name: w.numpy() for name, w in encoder.weights.items()},
        register={index: v.numpy() for index, v in cache.register.items()},
        regcache=cache.config,
        preprocess=PREPROCESS,
    )
    result = fold(state)
    assert result.changed
    changed = result.state
    weights = {name: torch.from_numpy(np.asarray(w)) for name, w in changed.weights.items()}
    register = {i: torch.from_numpy(np.asarray(v)) for i, v in changed.register.items()}
    return changed, Encoder(changed.encoder, weights), RegCache(cache.config, register)


@pytest.mark.parametrize(
    "fold",
    [*make_folds(CALIBRATION_FOLDS), ValueBalance(BALANCE_RANGES), Reparametrization(CHANNELS)],
    ids=lambda fold: fold.name,
)
def test_calibration_folds_keep_the_function(fold: Pass) -> None:
    encoder = double(tiny_encoder(layer_scale=True))
    cache = double_cache(tiny_regcache(encoder))
    images = tiny_images(3).double()
    before = encoder(images, regcache=cache)
    _, folded, changed = run_fold(encoder, cache, fold)
    after = folded(images, regcache=changed)
    assert (after - before).abs().max() <= EXACT * before.abs().max()
    plain = (folded(images) - encoder(images)).abs().max()
    assert plain <= EXACT * before.abs().max()


def test_folds_do_what_they_promise() -> None:
    encoder = double(tiny_encoder(layer_scale=True))
    cache = double_cache(tiny_regcache(encoder))
    scaled, key, value = make_folds(CALIBRATION_FOLDS)
    _, folded, _ = run_fold(encoder, cache, scaled)
    assert not folded.spec.layer_scale
    assert not any("ls1" in name for name in folded.weights)
    _, folded, _ = run_fold(encoder, cache, key)
    assert not folded.weights["blocks.1.attn.qkv.bias"][48:96].any()
    assert folded.weights["blocks.1.attn.qkv.bias"][:48].any()
    _, folded, _ = run_fold(encoder, cache, value)
    assert not folded.weights["blocks.1.attn.qkv.bias"][96:].any()


def test_attention_scale_moves_into_the_query_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = double(tiny_encoder(width=40, heads=5))  # 1/sqrt(8) is no power of two
    cache = double_cache(tiny_regcache(encoder))
    images = tiny_images(2).double()
    before = encoder(images, regcache=cache)
    (fold,) = make_folds(["attention-scale"])
    state, _, _ = run_fold(encoder, cache, fold)
    assert state.query_scaled
    weights = dict(encoder.weights)
    for name, factors in state.row_scale.items():
        rows = torch.from_numpy(factors)
        weights[f"{name}.weight"] = weights[f"{name}.weight"] * rows[:, None]
        weights[f"{name}.bias"] = weights[f"{name}.bias"] * rows

    class Unscaled(canonical_module.FloatNumerics):
        def matmul(self, name: str, a: Tensor, b: Tensor) -> Tensor:
            return super().matmul(name, a * 8**0.5 if name.endswith("qk") else a, b)

    after = Encoder(encoder.spec, weights)(images, Unscaled(), cache)
    assert (after - before).abs().max() <= EXACT * before.abs().max()


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_pixels_are_normalized_by_the_patch_convolution(layout: str) -> None:
    encoder = double(tiny_encoder())
    cache = double_cache(tiny_regcache(encoder))
    pixels = torch.randint(0, 256, (2, 3, 32, 24), dtype=torch.float64)
    mean, std = (torch.tensor(PREPROCESS[key]).double().view(3, 1, 1) for key in ("mean", "std"))
    before = encoder.embed((pixels / 255 - mean) / std)
    state, folded, _ = run_fold(encoder, cache, BakePreprocess(layout))
    assert state.pixels == layout
    assert (folded.embed(pixels) - before).abs().max() <= EXACT * before.abs().max()


@pytest.mark.parametrize(
    "preprocess",
    [{}, {"mean": [0.5], "std": [1, 1, 1]}, {"mean": [0, 0, 0], "std": [1, 0, 1]}],
    ids=str,
)
def test_pixels_need_a_sensible_mean_and_std(preprocess: dict[str, Any]) -> None:
    with pytest.raises(BundleError):
        build_model(
            replace(tiny_plan(), preprocess=preprocess), options=GraphOptions(pixels="nchw")
        )


def test_cls_only_gives_the_same_embedding() -> None:
    """Token 0 behind the last block, from one query row, in float64."""
    encoder = double(tiny_encoder())
    w, index, d = encoder.weights, encoder.spec.depth - 1, encoder.spec.width
    name = f"blocks.{index}"
    tokens = encoder.run_blocks(encoder.embed(tiny_images(2).double()), stop=index)
    whole = encoder.pool(encoder.block(index, tokens))
    qkv = F.linear(
        encoder.norm(f"{name}.norm1", tokens),
        w[f"{name}.attn.qkv.weight"],
        w[f"{name}.attn.qkv.bias"],
    )
    q, k, v = (p.unflatten(-1, (3, 16)).transpose(1, 2) for p in qkv.split(d, dim=-1))
    mixed = ((q[:, :, :1] / 4) @ k.transpose(-2, -1)).softmax(-1) @ v
    x = tokens[:, :1] + F.linear(
        mixed.transpose(1, 2).flatten(2),
        w[f"{name}.attn.out_proj.weight"],
        w[f"{name}.attn.out_proj.bias"],
    )
    hidden = F.gelu(
        F.linear(
            encoder.norm(f"{name}.norm2", x), w[f"{name}.mlp.fc1.weight"], w[f"{name}.mlp.fc1.bias"]
        )
    )
    x = x + F.linear(hidden, w[f"{name}.mlp.fc2.weight"], w[f"{name}.mlp.fc2.bias"])
    assert (encoder.pool(x) - whole).abs().max() <= EXACT * whole.abs().max()


def asymmetric(calibration: Calibration) -> Calibration:
    linears = {}
    for name, layer in calibration.quantization.linears.items():
        assert isinstance(layer.input, Uniform)
        high = layer.input.scale * 127
        linears[name] = LinearQuantization(
            Uniform.asymmetric(-0.3 * high, 0.9 * high, 8), layer.weight
        )
    return replace(calibration, quantization=Quantization(linears))


class Dequantized(canonical_module.FloatNumerics):
    """Integer products with the quantizers of a plan, in float64; codes are kept."""

    def __init__(self, state: FoldState) -> None:
        self.state, self.codes = state, dict[str, Tensor]()

    def linear(self, name: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        quant = self.state.linears[name].input
        scale, zero = float(quant.scale[0]), int(quant.zero_point[0])
        low, high = (-128, 127) if quant.signed else (0, 255)
        x = x + self.state.input_shift.get(name, 0.0)
        self.codes[name] = torch.clamp(torch.round(x / scale) + zero, low, high)
        w = self.state.linears[name].weight
        steps = torch.from_numpy(w.scale.astype(np.float64))[:, None]
        integers = torch.clamp(torch.round((weight.float() / steps.float()).double()), -127, 127)
        return F.linear((self.codes[name] - zero) * scale, integers * steps, bias)


def test_centre_shift_keeps_codes_and_function() -> None:
    encoder = tiny_encoder()
    calibration = asymmetric(naive_calibration(encoder, tiny_regcache(encoder)))
    regcache = calibration.regcache
    assert regcache is not None
    plan = make_plan(calibration, regcache_config=regcache.config)
    before = FoldState.of_plan(plan)
    (fold,) = make_folds(["centre-shift"])
    result = fold(before)
    assert set(result.changed) == set(plan.linears)
    after = result.state
    assert set(after.input_shift) == {f"blocks.{i}.mlp.fc2" for i in range(3)}
    # the cached keys and values keep their bias but for the shift of the values
    images = tiny_images(2).double()
    found, codes = [], []
    for state in (before, after):
        weights = {n: torch.from_numpy(np.asarray(w, np.float64)) for n, w in state.weights.items()}
        numerics = Dequantized(state)

        class Prefixed(Encoder):
            state: FoldState

            def prefix_kv(self, index: int, register: Tensor) -> tuple[Tensor, Tensor]:
                bias = self.weights[f"blocks.{index}.attn.qkv.bias"]
                if index in self.state.prefix_bias:
                    bias = torch.from_numpy(self.state.prefix_bias[index])
                weight = self.weights[f"blocks.{index}.attn.qkv.weight"]
                k, v = F.linear(register, weight[48:], bias[48:]).view(2, 1, 3, 1, 16)
                return k, v

        model = Prefixed(state.encoder, weights)
        object.__setattr__(model, "state", state)
        register = {
            i: torch.from_numpy(np.asarray(v, np.float64)) for i, v in state.register.items()
        }
        found.append(model(images, numerics, RegCache(regcache.config, register)))
        codes.append(numerics.codes)
    assert (found[0] - found[1]).abs().max() <= EXACT * found[0].abs().max()
    for name, unsigned in codes[0].items():
        assert torch.equal(unsigned - 128, codes[1][name])


def test_a_symmetric_quantizer_needs_no_shift() -> None:
    one = np.ones(1, np.float32)
    assert centred(TensorQuant(one, np.zeros(1, np.int32))) is None
    shifted = centred(TensorQuant(one, np.full(1, 100, np.int32), signed=False))
    assert shifted is not None
    assert shifted[1] == 28


def test_balance_is_a_power_of_two_and_bounded() -> None:
    ratio = balance_ratio(np.array([0.0, 1e-9, 1.0, 4.0, 1e9]), 1.0)
    assert ratio[0] == 1
    assert ratio.min() >= 1 / 64
    assert ratio.max() <= 64
    assert (np.log2(ratio) == np.rint(np.log2(ratio))).all()


def test_balance_narrows_the_ranges_of_out_proj() -> None:
    encoder = tiny_encoder()
    weights = {n: w.clone() for n, w in encoder.weights.items()}
    weights["blocks.0.attn.qkv.weight"][96:100] *= 50
    encoder = encoder.replace(weights)
    tokens = encoder.embed(tiny_images(4))
    spread = []
    for folds in ((), ("value-balance",)):
        found: list[Tensor] = []

        class Watch(canonical_module.FloatNumerics):
            def linear(
                self, name: str, x: Tensor, weight: Tensor, bias: Tensor, found: Any = found
            ) -> Tensor:
                if name == "blocks.0.attn.out_proj":
                    found.append(x.abs().amax(dim=(0, 1)))
                return super().linear(name, x, weight, bias)

        fold_encoder(encoder, folds, tokens).run_blocks(tokens, 0, 1, Watch())
        spread.append(float(found[0].max() / found[0].min()))
    assert spread[1] < 0.5 * spread[0]
