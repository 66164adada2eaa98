"""DINOv2 (with and without registers) and DINOv3 as transformers names their parameters."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from regcache_export.spec import EncoderSpec

from ..errors import UnsupportedEncoderError
from .parameters import Parameters
from .reading import Weights
from .transformers_blocks import BlockNames, read_blocks, resample_positions
from .transformers_config import Fields

DINOV2_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "image_size": 224,
    "patch_size": 14,
    "qkv_bias": True,
    "use_swiglu_ffn": False,
}
DINOV2_REGISTERS_DEFAULTS = DINOV2_DEFAULTS | {"patch_size": 16, "num_register_tokens": 4}
DINOV3_DEFAULTS = {
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "num_channels": 3,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "rope_theta": 100.0,
    "image_size": 224,
    "patch_size": 16,
    "query_bias": True,
    "key_bias": False,
    "value_bias": True,
    "proj_bias": True,
    "mlp_bias": True,
    "use_gated_mlp": False,
    "num_register_tokens": 0,
}
DINOV2_ANCHORS = ("embeddings.patch_embeddings.projection.weight",)
DINOV3_ANCHORS = ("embeddings.patch_embeddings.weight",)
SCALES = ("layer_scale1.lambda1", "layer_scale2.lambda1")


def dinov2_spec(fields: Fields, size: tuple[int, int], projection: int | None) -> EncoderSpec:
    """The structure; the embedding is the class token behind the last norm."""
    return _dinov2(fields, size, 0)


def dinov2_registers_spec(
    fields: Fields, size: tuple[int, int], projection: int | None
) -> EncoderSpec:
    """The same with trained registers behind the class token."""
    return _dinov2(fields, size, fields.count("num_register_tokens"))


def _dinov2(fields: Fields, size: tuple[int, int], registers: int) -> EncoderSpec:
    width, gated = fields.count("hidden_size"), fields.switch("use_swiglu_ffn")
    hidden = int(width * fields.number("mlp_ratio"))
    if gated:  # two thirds of it, up to a multiple of 8
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
    return EncoderSpec(
        image_size=size,
        patch_size=fields.pair("patch_size"),
        width=width,
        depth=fields.count("num_hidden_layers"),
        heads=fields.count("num_attention_heads"),
        mlp_width=hidden,
        output_dim=width,
        num_prefix_tokens=1 + registers,
        activation="swiglu" if gated else fields.activation(),
        norm_eps=fields.number("layer_norm_eps"),
        layer_scale=True,
        projection=False,
    )


def dinov2_weights(parameters: Parameters, spec: EncoderSpec, fields: Fields) -> Weights:
    """Weights; the mask token of its training is left out."""
    top = parameters.prefix(DINOV2_ANCHORS)
    registers = spec.num_prefix_tokens - 1
    parameters.leave_out(rf"{top}embeddings\.mask_token$")
    special = [parameters.take(f"{top}embeddings.cls_token")[0]]
    if registers:
        special.append(parameters.take(f"{top}embeddings.register_tokens")[0])
    positions = parameters.take(f"{top}embeddings.position_embeddings")[0]
    patches = resample_positions(positions[1:], spec.grid, antialias=registers > 0)
    without = positions.new_zeros(registers, spec.width)
    biased = fields.switch("qkv_bias")

    def linear(part: str) -> tuple[str, str]:
        return f"attention.attention.{part}", f"attention.{part[0]}_proj"

    names = BlockNames(
        norm1="norm1",
        norm2="norm2",
        query=linear("query"),
        key=linear("key"),
        value=linear("value"),
        out_proj=("attention.output.dense", "attention.o_proj"),
        # packed on disk, with the gate first
        fc1=("mlp.fc1", "mlp.weights_in", "mlp.up_proj"),
        fc2=("mlp.fc2", "mlp.weights_out", "mlp.down_proj"),
        gate=("mlp.gate_proj",) if spec.activation == "swiglu" else None,
        scales=SCALES,
        biased=(biased, biased, biased),
    )
    return {
        "prefix_tokens": torch.cat(special),
        "pos_embed": torch.cat([positions[:1], without, patches]),
        **parameters.affine("patch_embed", f"{top}embeddings.patch_embeddings.projection"),
        **read_blocks(parameters, f"{top}encoder.layer.", spec, names),
        **parameters.affine("norm", f"{top}layernorm"),
    }


def dinov3_spec(fields: Fields, size: tuple[int, int], projection: int | None) -> EncoderSpec:
    """The structure; the embedding is the class token behind the last norm."""
    gated = fields.switch("use_gated_mlp")
    if gated and fields.text("hidden_act") != "silu":
        raise UnsupportedEncoderError(
            f"a gated MLP with {fields.text('hidden_act')} in place of silu is not supported"
        )
    width, heads = fields.count("hidden_size"), fields.count("num_attention_heads")
    if width % (4 * heads):
        raise UnsupportedEncoderError(f"rotary heads of {width / heads:g} channels")
    return EncoderSpec(
        image_size=size,
        patch_size=fields.pair("patch_size"),
        width=width,
        depth=fields.count("num_hidden_layers"),
        heads=heads,
        mlp_width=fields.count("intermediate_size"),
        output_dim=width,
        num_prefix_tokens=1 + fields.count("num_register_tokens"),
        activation="swiglu" if gated else fields.activation(),
        norm_eps=fields.number("layer_norm_eps"),
        layer_scale=True,
        projection=False,
        rotary=True,
    )


def dinov3_weights(parameters: Parameters, spec: EncoderSpec, fields: Fields) -> Weights:
    """Weights; positions are rotary alone."""
    top = parameters.prefix(DINOV3_ANCHORS)
    parameters.leave_out(rf"{top}embeddings\.mask_token$|{top}rope_embeddings\.")
    special = [parameters.take(f"{top}embeddings.cls_token")[0]]
    # there with no rows where the model has none
    special.append(parameters.take(f"{top}embeddings.register_tokens")[0])
    names = BlockNames(
        norm1="norm1",
        norm2="norm2",
        query=("attention.q_proj",),
        key=("attention.k_proj",),
        value=("attention.v_proj",),
        out_proj=("attention.o_proj",),
        fc1=("mlp.up_proj",),
        fc2=("mlp.down_proj",),
        gate=("mlp.gate_proj",) if spec.activation == "swiglu" else None,
        scales=SCALES,
        biased=(
            fields.switch("query_bias"),
            fields.switch("key_bias"),
            fields.switch("value_bias"),
        ),
        out_bias=fields.switch("proj_bias"),
        mlp_bias=fields.switch("mlp_bias"),
    )
    layers = parameters.prefix(("layer.0.norm1.weight",)) + "layer."
    return {
        "prefix_tokens": torch.cat(special),
        "pos_embed": torch.zeros(spec.num_tokens, spec.width),
        "rotary": dinov3_angles(spec, fields.number("rope_theta")),
        **parameters.affine("patch_embed", f"{top}embeddings.patch_embeddings"),
        **read_blocks(parameters, layers, spec, names),
        **parameters.affine("norm", f"{top}norm"),
    }


def dinov3_angles(spec: EncoderSpec, base: float) -> Tensor:
    """`[N, d]`: cosines, then sines, of the patches' centres in [-1, 1]; special tokens unturned.

    Half of the angles turn by the height, half by the width, with periods from 1 up to `base`.
    """
    quarter = spec.head_dim // 4
    frequency = 1 / base ** torch.arange(0, 1, 4 / spec.head_dim, dtype=torch.float32)[:quarter]
    sides = [2 * torch.arange(0.5, count) / count - 1 for count in spec.grid]
    centres = torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1).flatten(0, 1)
    angles = (2 * math.pi * centres[:, :, None] * frequency).flatten(1)
    special = angles.new_zeros(spec.num_prefix_tokens, angles.shape[1])
    angles = torch.cat([special, angles])
    return torch.cat([angles.cos(), angles.sin()], dim=1)
