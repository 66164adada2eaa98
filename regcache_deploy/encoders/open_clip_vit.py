"""Adapter: open_clip's `VisionTransformer` to the canonical encoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from regcache_export.spec import Activation, EncoderSpec, FinalNorm

from ..errors import UnsupportedEncoderError
from .canonical import Encoder


def from_open_clip(visual: Any) -> Encoder:
    """Read an `open_clip.transformer.VisionTransformer`.

    Returns:
        The canonical encoder; its weights are float32 copies of the module's parameters.

    Raises:
        UnsupportedEncoderError: the tower uses a feature that the canonical encoder lacks.
    """
    from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

    if not isinstance(visual, VisionTransformer):
        raise UnsupportedEncoderError(
            f"the image tower is a {type(visual).__name__}, not open_clip's VisionTransformer"
        )
    blocks = list(visual.transformer.resblocks)
    odd = {type(block).__name__ for block in blocks if type(block) is not ResidualAttentionBlock}
    if odd:
        raise UnsupportedEncoderError(f"unsupported block type: {', '.join(sorted(odd))}")
    if visual.attn_pool is not None:
        raise UnsupportedEncoderError("attentional pooling (attn_pool) is not supported")
    if visual.pool_type == "none":
        raise UnsupportedEncoderError("pool_type 'none' gives no single embedding")
    first = blocks[0]
    layer_scale = isinstance(first.ls_1, nn.Module) and not isinstance(first.ls_1, nn.Identity)
    final_norm: FinalNorm = "after_pool" if visual.final_ln_after_pool else "before_pool"
    spec = EncoderSpec(
        image_size=(visual.image_size[0], visual.image_size[1]),
        patch_size=(visual.patch_size[0], visual.patch_size[1]),
        width=visual.conv1.out_channels,
        depth=len(blocks),
        heads=first.attn.num_heads,
        mlp_width=first.mlp.c_fc.out_features,
        output_dim=visual.output_dim if visual.proj is not None else visual.conv1.out_channels,
        num_prefix_tokens=1,
        activation=_activation(first.mlp.gelu),
        norm_eps=_single_eps(visual),
        norm_pre=isinstance(visual.ln_pre, nn.LayerNorm),
        layer_scale=layer_scale,
        final_norm=final_norm,
        pool="cls" if visual.pool_type == "tok" else "avg",
        projection=visual.proj is not None,
    )
    return Encoder(spec, {k: v.contiguous() for k, v in _weights(visual, spec).items()})


def _activation(module: nn.Module) -> Activation:
    name = type(module).__name__
    if name == "QuickGELU":
        return "quick_gelu"
    if isinstance(module, nn.GELU):
        return "gelu_tanh" if module.approximate == "tanh" else "gelu"
    raise UnsupportedEncoderError(f"unsupported MLP activation {name}")


def _single_eps(visual: nn.Module) -> float:
    epsilons = {m.eps for m in visual.modules() if isinstance(m, nn.LayerNorm)}
    if len(epsilons) != 1:
        raise UnsupportedEncoderError(f"LayerNorms with different epsilons: {sorted(epsilons)}")
    return float(epsilons.pop())


def _weights(visual: Any, spec: EncoderSpec) -> dict[str, Tensor]:
    def tensor(parameter: Tensor) -> Tensor:
        return parameter.detach().to(torch.float32)

    def affine(module: nn.Module, name: str) -> dict[str, Tensor]:
        bias = getattr(module, "bias", None)
        weight = tensor(module.weight)  # type: ignore[arg-type]
        return {
            f"{name}.weight": weight,
            f"{name}.bias": tensor(bias) if bias is not None else weight.new_zeros(len(weight)),
        }

    out = affine(visual.conv1, "patch_embed")
    out["prefix_tokens"] = tensor(visual.class_embedding)[None]
    out["pos_embed"] = tensor(visual.positional_embedding)
    if spec.norm_pre:
        out |= affine(visual.ln_pre, "norm_pre")
    for i, block in enumerate(visual.transformer.resblocks):
        name = f"blocks.{i}"
        out |= affine(block.ln_1, f"{name}.norm1") | affine(block.ln_2, f"{name}.norm2")
        out[f"{name}.attn.qkv.weight"] = tensor(block.attn.in_proj_weight)
        out[f"{name}.attn.qkv.bias"] = tensor(block.attn.in_proj_bias)
        out |= affine(block.attn.out_proj, f"{name}.attn.out_proj")
        out |= affine(block.mlp.c_fc, f"{name}.mlp.fc1")
        out |= affine(block.mlp.c_proj, f"{name}.mlp.fc2")
        if spec.layer_scale:
            out[f"{name}.ls1"] = tensor(block.ls_1.gamma)
            out[f"{name}.ls2"] = tensor(block.ls_2.gamma)
    out |= affine(visual.ln_post, "norm")
    if spec.projection:
        out["proj.weight"] = tensor(visual.proj).T
        out["proj.bias"] = torch.zeros(spec.output_dim)
    return out
