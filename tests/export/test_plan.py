"""A plan survives its files, damaged files are refused, and a calibration becomes a plan."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from regcache_deploy.encoders.regcache import RegCacheConfig
from regcache_deploy.quantization.plan import make_plan
from regcache_deploy.quantization.quantizers import Uniform
from regcache_deploy.quantization.simulate import LinearQuantization, Quantization
from regcache_export.errors import BundleError, ConfigError
from regcache_export.files import sha256_file
from regcache_export.plan import Plan
from tests.tiny_plans import (
    CHOICE,
    float_calibration,
    naive_calibration,
    tiny_encoder,
    tiny_plan,
    tiny_regcache,
)


def assert_same(a: Any, b: Any) -> None:
    """Equal, with arrays compared by type, shape and every bit."""
    if isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif hasattr(a, "__dataclass_fields__"):
        for name in a.__dataclass_fields__:
            assert_same(getattr(a, name), getattr(b, name))
    else:
        assert a == b


@pytest.mark.parametrize("quantized", [False, True])
def test_round_trip(quantized: bool, tmp_path: Path) -> None:
    plan = tiny_plan(quantized)
    plan.save(tmp_path / "new" / "folder")
    assert_same(Plan.load(tmp_path / "new" / "folder"), plan)


def test_round_trip_of_the_bare_minimum(tmp_path: Path) -> None:
    plan = make_plan(float_calibration(tiny_encoder(num_prefix_tokens=0, pool="avg")))
    plan.save(tmp_path)
    loaded = Plan.load(tmp_path)
    assert_same(loaded, plan)
    assert loaded.regcache is None
    assert loaded.text_features is None


def test_saving_again_gives_the_same_bytes_and_leaves_nothing_else(tmp_path: Path) -> None:
    plan = tiny_plan()
    plan.save(tmp_path)
    before = {p.name: sha256_file(p) for p in tmp_path.iterdir()}
    Plan.load(tmp_path).save(tmp_path)
    assert {p.name: sha256_file(p) for p in tmp_path.iterdir()} == before
    assert before.keys() == {"plan.json", "plan.safetensors"}


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "plan.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def flip_last_byte(folder: Path) -> None:
    path = folder / "plan.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def truncate_and_rehash(folder: Path) -> None:
    path = folder / "plan.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    edit(folder, lambda d: d.update(tensors_sha256=sha256_file(path)))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no json": lambda f: (f / "plan.json").unlink(),
    "no tensors": lambda f: (f / "plan.safetensors").unlink(),
    "empty json": lambda f: (f / "plan.json").write_text(""),
    "binary json": lambda f: (f / "plan.json").write_bytes(b"\xff\xfe\x00"),
    "cut json": lambda f: (f / "plan.json").write_text((f / "plan.json").read_text()[:50]),
    "a list": lambda f: (f / "plan.json").write_text("[]"),
    "newer schema": lambda f: edit(f, lambda d: d.update(schema=2)),
    "no schema": lambda f: edit(f, lambda d: d.pop("schema")),
    "changed tensors": flip_last_byte,
    "cut tensors": truncate_and_rehash,
    "unknown encoder field": lambda f: edit(f, lambda d: d["encoder"].update(rope=True)),
    "no encoder": lambda f: edit(f, lambda d: d.pop("encoder")),
    "unknown regcache field": lambda f: edit(f, lambda d: d["regcache"].update(sinks=1)),
    "unknown layer": lambda f: edit(
        f, lambda d: d["linears"].update({"blocks.9.mlp.fc1": d["linears"]["blocks.0.mlp.fc1"]})
    ),
    "layer without weight": lambda f: edit(f, lambda d: d["linears"]["blocks.0.mlp.fc1"].popitem()),
    "other width": lambda f: edit(f, lambda d: d["encoder"].update(width=96)),
    "linears a list": lambda f: edit(f, lambda d: d.update(linears=[])),
    "a linear a list": lambda f: edit(f, lambda d: d["linears"].update({"blocks.0.mlp.fc1": []})),
    "bits a string": lambda f: edit(
        f, lambda d: d["linears"]["blocks.0.mlp.fc1"]["input"].update(bits="8")
    ),
    "signed a number": lambda f: edit(
        f, lambda d: d["linears"]["blocks.0.mlp.fc1"]["input"].update(signed=1)
    ),
    "delete count a string": lambda f: edit(f, lambda d: d["regcache"].update(delete_count="4")),
    "delete count a truth value": lambda f: edit(
        f, lambda d: d["regcache"].update(delete_count=True)
    ),
    "no delete count": lambda f: edit(f, lambda d: d["regcache"].pop("delete_count")),
    "an empty choice": lambda f: edit(f, lambda d: d.update(regcache={})),
    "a choice of false": lambda f: edit(f, lambda d: d.update(regcache=False)),
    "patches of zero": lambda f: edit(f, lambda d: d["encoder"].update(patch_size=[0, 0])),
    "patches of one number": lambda f: edit(f, lambda d: d["encoder"].update(patch_size=[8])),
    "patches larger than the image": lambda f: edit(
        f, lambda d: d["encoder"].update(patch_size=[800, 800])
    ),
    "width a fraction": lambda f: edit(f, lambda d: d["encoder"].update(width=48.0)),
    "no blocks": lambda f: edit(f, lambda d: d["encoder"].update(depth=0)),
    "encoder a list": lambda f: edit(f, lambda d: d.update(encoder=[])),
    "labels a string": lambda f: edit(f, lambda d: d.update(labels="cat")),
    "a label a number": lambda f: edit(f, lambda d: d.update(labels=[1, 2, 3, 4])),
    "logit scale a string": lambda f: edit(f, lambda d: d.update(logit_scale="50")),
    "preprocess a list": lambda f: edit(f, lambda d: d.update(preprocess=[1])),
    "provenance missing": lambda f: edit(f, lambda d: d.pop("provenance")),
    "hash a number": lambda f: edit(f, lambda d: d.update(tensors_sha256=7)),
    "published a list": lambda f: edit(f, lambda d: d.update(published=[1])),
    "published without pair": lambda f: edit(
        f, lambda d: d.update(published={"blocks.0.attn.qk": [{}]})
    ),
    "matmuls a string": lambda f: edit(f, lambda d: d.update(matmuls="none")),
    "prefix without register": lambda f: edit(f, lambda d: d["regcache"].update(prefix_block=0)),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("plan")
    tiny_plan().save(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_plan_is_refused(
    damage: Callable[[Path], object], saved: dict[str, bytes], tmp_path: Path
) -> None:
    for name, data in saved.items():
        (tmp_path / name).write_bytes(data)
    damage(tmp_path)
    with pytest.raises(BundleError) as caught:
        Plan.load(tmp_path)
    assert caught.value.exit_code == 5


# ---- from a calibration -------------------------------------------------------------------------


def test_a_plan_holds_copies() -> None:
    encoder = tiny_encoder()
    plan = make_plan(float_calibration(encoder))
    before = plan.weights["pos_embed"].copy()
    encoder.weights["pos_embed"].zero_()
    np.testing.assert_array_equal(plan.weights["pos_embed"], before)


def test_quantizers_arrive_as_they_were() -> None:
    calibration = naive_calibration(tiny_encoder())
    plan = make_plan(calibration)
    assert plan.linears.keys() == calibration.quantization.linears.keys()
    layer = plan.linears["blocks.0.attn.qkv"]
    assert layer.weight.per_channel
    assert layer.weight.scale.shape == (144,)
    assert not layer.input.per_channel
    assert layer.input.scale.dtype == np.float32
    assert layer.input.zero_point.dtype == np.int32


def test_the_choice_must_be_the_calibrated_one() -> None:
    encoder = tiny_encoder()
    calibration = float_calibration(encoder, tiny_regcache(encoder))
    assert make_plan(calibration, regcache_config=CHOICE).register.keys() == {1, 2}
    with pytest.raises(ConfigError, match="calibrated for"):
        make_plan(calibration)
    with pytest.raises(ConfigError, match="calibrated for"):
        make_plan(calibration, regcache_config=replace(CHOICE, prefix_count=4))
    with pytest.raises(ConfigError, match="calibrated for"):
        make_plan(float_calibration(encoder), regcache_config=CHOICE)


def test_an_empty_choice_is_no_choice() -> None:
    encoder = tiny_encoder()
    nothing = RegCacheConfig(1, 0, 1, 0)
    calibration = float_calibration(encoder, tiny_regcache(encoder, nothing))
    assert make_plan(calibration, regcache_config=nothing).regcache is None
    assert make_plan(calibration).regcache is None


def test_a_missing_register_is_noticed() -> None:
    encoder = tiny_encoder()
    cache = tiny_regcache(encoder)
    partial = replace(cache, register={1: cache.register[1]})
    with pytest.raises(BundleError, match="register of block 2"):
        make_plan(float_calibration(encoder, partial), regcache_config=CHOICE)


class Halves:
    """A quantizer that is not uniform."""

    def __call__(self, x: Tensor) -> Tensor:
        return x / 2


def test_quantizers_that_only_simulation_has_are_refused() -> None:
    calibration = naive_calibration(tiny_encoder())
    layer = calibration.quantization.linears["blocks.0.mlp.fc2"]
    odd = Quantization({"blocks.0.mlp.fc2": LinearQuantization(Halves(), layer.weight)})
    with pytest.raises(ConfigError, match=r"blocks\.0\.mlp\.fc2.*deploy"):
        make_plan(replace(calibration, quantization=calibration.quantization.merge(odd)))
    uniform = Uniform.symmetric(torch.tensor(1.0), 8)
    products = Quantization(matmuls={"blocks.0.attn.qk": (uniform, Halves())})
    with pytest.raises(ConfigError, match=r"blocks\.0\.attn\.qk"):
        make_plan(replace(calibration, quantization=calibration.quantization.merge(products)))


def test_attention_quantizers_survive_the_file(tmp_path: Path) -> None:
    calibration = naive_calibration(tiny_encoder())
    left, right = (Uniform.symmetric(torch.tensor(x), 8) for x in (1.0, 3.0))
    products = Quantization(matmuls={"blocks.0.attn.qk": (left, right)})
    plan = make_plan(replace(calibration, quantization=calibration.quantization.merge(products)))
    plan.save(tmp_path)
    loaded = Plan.load(tmp_path).matmuls["blocks.0.attn.qk"]
    for quant, expected in zip(loaded, (left, right), strict=True):
        assert quant.scale.tolist() == [float(expected.scale)]
        assert (quant.bits, quant.signed, quant.zero_point.tolist()) == (8, True, [0])
