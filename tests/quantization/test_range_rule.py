"""RepQ-ViT's percentile clips a class token that stands out; the output's error sees that."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import pytest
import torch
from torch import Tensor

from regcache_deploy.encoders.canonical import Encoder
from regcache_deploy.quantization.baselines.repqvit import RangeRule, RepQViT
from regcache_deploy.quantization.output_error import CLASS_SHARE, Reading
from regcache_deploy.quantization.quantizers import Bits, Uniform
from regcache_deploy.quantization.simulate import Calibration
from tests.tiny_plans import tame_encoder

NAME = "blocks.1.mlp.fc2"


@pytest.fixture(autouse=True)
def _no_grad(one_thread: None) -> Iterator[None]:
    with torch.no_grad():
        yield


def images(count: int, seed: int) -> Tensor:
    return torch.randn(count, 3, 128, 128, generator=torch.Generator().manual_seed(seed))


def outstanding_class_token() -> Encoder:
    """257 tokens; in block 1 a hidden unit answers to the class token alone, ten times as much.

    As in a healthy DINOv2, whose class token is the only large row at the input of fc2: one value
    in 200,000 an image, so that even the widest percentile, 0.99999, is below it.
    """
    encoder = tame_encoder(image_size=(128, 128), mlp_width=800)
    seen: dict[str, Tensor] = {}

    class Watch:
        def linear(self, name: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            seen[name] = x
            return torch.nn.functional.linear(x, weight, bias)

        def matmul(self, name: str, a: Tensor, b: Tensor) -> Tensor:
            return a @ b

    encoder.run_blocks(encoder.embed(images(4, 9)), numerics=Watch())
    x, hidden = seen["blocks.1.mlp.fc1"], seen[NAME]
    own = x[:, 0].mean(0) - x[:, 1:].mean((0, 1))
    own = own / own.square().sum()
    rows = encoder.weights["blocks.1.mlp.fc1.weight"].clone()
    bias = encoder.weights["blocks.1.mlp.fc1.bias"].clone()
    size = 10 * float(hidden.abs().amax((0, 2)).median())
    # 0 at the mean of both kinds of token, `size` at the class token
    middle = (x[:, 0].mean(0) + x[:, 1:].mean((0, 1))) / 2
    rows[5] = 2 * size * own
    bias[5] = -2 * size * float(own @ middle)
    return encoder.replace({"blocks.1.mlp.fc1.weight": rows, "blocks.1.mlp.fc1.bias": bias})


def calibrate(encoder: Encoder, rule: RangeRule, bits: Bits | None = None) -> Calibration:
    tokens = encoder.embed(images(6, 3))
    return RepQViT(bits, range_rule=rule).calibrate(encoder, tokens)


def highest(calibration: Calibration) -> float:
    quantizer = calibration.quantization.linears[NAME].input
    assert isinstance(quantizer, Uniform)
    return float((quantizer.code_range[1] - quantizer.zero_point) * quantizer.scale)


@pytest.mark.parametrize("bits", [Bits(), Bits(6, 6)], ids=str)
def test_the_class_token_is_clipped_by_the_percentile_alone(bits: Bits) -> None:
    encoder, test = outstanding_class_token(), images(6, 4)
    exact = encoder(test)
    found, errors = dict[str, float](), dict[str, float]()
    for rule in get_args(RangeRule):
        calibration = calibrate(encoder, rule, bits)
        found[rule] = highest(calibration)
        got = calibration.encoder(test, calibration.numerics())
        errors[rule] = float((got - exact).norm() / exact.norm())
    assert found["percentile"] < 0.9 * found["output_error"]
    assert errors["output_error"] < 0.7 * errors["percentile"]


def test_what_is_read_counts() -> None:
    errors = torch.zeros(2, 5)
    errors[:, 0] = 1
    reading = Reading(depth=3, class_token=True)
    assert reading.mean("blocks.0.mlp.fc2", errors) == CLASS_SHARE
    assert reading.mean("blocks.2.mlp.fc2", errors) == 1  # nothing reads the patches any more
    assert reading.mean("blocks.2.attn.qkv", errors) == CLASS_SHARE  # all keys are read
    assert reading.mean("blocks.1.mlp.fc2", errors[:, :1]) == 1
    assert Reading(3, class_token=False).mean("blocks.2.mlp.fc2", errors) == pytest.approx(0.2)


def test_without_a_class_token_all_tokens_count_alike() -> None:
    encoder = tame_encoder(pool="avg", num_prefix_tokens=0)
    assert not Reading.of(encoder.spec).class_token
    assert Reading.of(tame_encoder().spec) == Reading(3, True)


def test_the_default_is_the_published_rule() -> None:
    encoder = tame_encoder(image_size=(128, 128), depth=1)
    tokens = encoder.embed(images(4, 3))
    plain = RepQViT().calibrate(encoder, tokens)
    named = RepQViT(range_rule="percentile").calibrate(encoder, tokens)
    for name, layer in plain.quantization.linears.items():
        other = named.quantization.linears[name]
        for one, two in ((layer.input, other.input), (layer.weight, other.weight)):
            assert isinstance(one, Uniform)
            assert isinstance(two, Uniform)
            assert torch.equal(one.scale, two.scale)
            assert torch.equal(one.zero_point, two.zero_point)
