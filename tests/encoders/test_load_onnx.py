"""Weights read back from an ONNX export."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from regcache_deploy.compat import import_torchvision
from regcache_deploy.encoders.known import check_model
from regcache_deploy.encoders.load import load_model
from regcache_deploy.encoders.load_onnx import compare
from regcache_deploy.encoders.onnx_weights import read_onnx
from regcache_deploy.errors import ConfigError, ModelError, UnsupportedEncoderError

onnx = pytest.importorskip("onnx")
import_torchvision()  # transformers imports it without the workaround

TOWER = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 16,
}


class Inner(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(6)
        self.fc = torch.nn.Linear(6, 4)
        self.twin = torch.nn.Parameter(self.fc.bias.detach().clone())
        self.head = torch.nn.Linear(4, 3, bias=False)

    def forward(self, x: Any) -> Any:
        return self.head(self.fc(self.norm(x)) * 2.0 + self.twin)


class Outer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([Inner()])

    def forward(self, x: Any) -> Any:
        return self.layers[0](x)


def exported(model: Any, path: Any, *inputs: Any) -> None:
    """As PyTorch's TorchScript exporter writes it."""
    path.parent.mkdir(exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model.eval(),
            inputs,
            str(path),
            dynamo=False,
            input_names=["pixel_values"],
            dynamic_axes={"pixel_values": {0: "batch"}},
            opset_version=17,
        )


def test_every_parameter_comes_back_under_its_name(tmp_path):
    model = Outer()
    exported(model, tmp_path / "m.onnx", torch.randn(1, 5, 6))
    found, expected = read_onnx(tmp_path / "m.onnx"), model.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def graph_of(*nodes: Any, initializers: Any = ()) -> Any:
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 2])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 2])
    return onnx.helper.make_model(
        onnx.helper.make_graph(list(nodes), "g", [x], [y], list(initializers))
    )


@pytest.mark.parametrize(
    ("nodes", "problem"),
    [
        (
            [
                onnx.helper.make_node(
                    "DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="/fc/Quant"
                )
            ],
            r"quantized \(DynamicQuantizeLinear\)",
        ),
        ([onnx.helper.make_node("Relu", ["x"], ["y"], name="node_relu_1")], "no paths of modules"),
    ],
    ids=["quantized", "dynamo"],
)
def test_other_files_are_refused(tmp_path, nodes, problem):
    onnx.save(graph_of(*nodes), tmp_path / "m.onnx")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip_vision_model"}))
    with pytest.raises(ModelError, match=problem):
        load_model(f"onnx:{tmp_path / 'm.onnx'}")


def test_a_graph_needs_its_description(tmp_path):
    onnx.save(graph_of(onnx.helper.make_node("Relu", ["x"], ["y"])), tmp_path / "m.onnx")
    name = f"onnx:{tmp_path / 'm.onnx'}"
    with pytest.raises(ModelError, match=r"no config\.json beside"):
        check_model(name, None)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "swin"}))
    with pytest.raises(UnsupportedEncoderError, match="window attention"):
        check_model(name, None)
    with pytest.raises(ModelError, match="there is no file"):
        check_model(f"onnx:{tmp_path}/no.onnx", None)
    with pytest.raises(ConfigError, match="brings its own weights"):
        load_model(name, "random")
    (tmp_path / "torn.onnx").write_bytes(b"not a graph")
    with pytest.raises(ModelError, match="cannot be read"):
        load_model(f"onnx:{tmp_path}/torn.onnx")


class Tower(torch.nn.Module):
    """One embedding out of a model of transformers."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Any) -> Any:
        out = self.model(pixel_values=pixel_values)
        return out.image_embeds if hasattr(out, "image_embeds") else out.pooler_output


@pytest.mark.parametrize("kind", ["CLIP", "Siglip", "DINOv3ViT"])
def test_exports_of_transformers(tmp_path, kind):
    t: Any = pytest.importorskip("transformers")
    pytest.importorskip("onnxruntime")
    make = {
        "CLIP": lambda: t.CLIPVisionModelWithProjection(
            t.CLIPVisionConfig(**TOWER, projection_dim=40)
        ),
        "Siglip": lambda: t.SiglipVisionModel(t.SiglipVisionConfig(**TOWER)),
        "DINOv3ViT": lambda: t.DINOv3ViTModel(t.DINOv3ViTConfig(**TOWER)),
    }
    torch.manual_seed(0)
    model = make[kind]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1)
    model.save_pretrained(tmp_path)
    path = tmp_path / "onnx" / "vision_model.onnx"
    exported(Tower(model), path, torch.randn(1, 3, 64, 64))
    found, expected = load_model(f"onnx:{path}").encoder, load_model(str(tmp_path)).encoder
    assert found.spec == expected.spec
    for name, value in expected.weights.items():
        assert torch.allclose(found.weights[name], value, atol=1e-6), name
    changed = expected.replace({"norm.bias": expected.weights["norm.bias"] + 1})
    with pytest.raises(ModelError, match="computes something else"):
        compare(path, changed)
    # half precision, as `vision_model_fp16.onnx` has it
    graph = onnx.load(str(path))
    for tensor in graph.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            half = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(half, tensor.name))
    onnx.save(graph, tmp_path / "half.onnx")
    weight = read_onnx(tmp_path / "half.onnx")["model." + anchor(kind)]
    assert weight.dtype == torch.float32


def anchor(kind: str) -> str:
    return {
        "CLIP": "vision_model.embeddings.patch_embedding.weight",
        "Siglip": "embeddings.patch_embedding.weight",
        "DINOv3ViT": "embeddings.patch_embeddings.weight",
    }[kind]
