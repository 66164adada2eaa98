"""Adapter: open_clip's `VisionTransformer` to the canonical encoder."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from regcache_export.spec import EncoderSpec, FinalNorm, Pool

from ..errors import UnsupportedEncoderError
from .canonical import Encoder
from .reading import Weights, activation_of, affine, contiguous, is_norm, single_eps, tensor


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
            + (": a convolutional network" if "ResNet" in type(visual).__name__ else "")
        )
    blocks = list(visual.transformer.resblocks)
    odd = {type(block).__name__ for block in blocks if type(block) is not ResidualAttentionBlock}
    if odd:
        raise UnsupportedEncoderError(f"unsupported block type: {', '.join(sorted(odd))}")
    first = blocks[0]
    width = visual.conv1.out_channels
    final_norm: FinalNorm = "after_pool" if visual.final_ln_after_pool else "before_pool"
    pool: Pool = "cls" if visual.pool_type == "tok" else "avg"
    attention_pool: dict[str, Any] = {}
    if visual.attn_pool is not None:
        attention_pool = _attention_pool(visual)
        # CoCa: the pooler's own norm of its tokens takes the place of the final one
        final_norm, pool = "before_pool", "map"
    elif visual.pool_type == "none":
        raise UnsupportedEncoderError("pool_type 'none' gives no single embedding")
    pooled = attention_pool.get("pool_width", width)
    spec = EncoderSpec(
        image_size=(visual.image_size[0], visual.image_size[1]),
        patch_size=(visual.patch_size[0], visual.patch_size[1]),
        width=width,
        depth=len(blocks),
        heads=first.attn.num_heads,
        mlp_width=first.mlp.c_fc.out_features,
        output_dim=visual.output_dim if visual.proj is not None else pooled,
        num_prefix_tokens=1,
        activation=activation_of(first.mlp.gelu),
        norm_eps=single_eps(visual.modules()),
        norm_pre=is_norm(visual.ln_pre),
        layer_scale=not isinstance(first.ls_1, nn.Identity),
        final_norm=final_norm,
        pool=pool,
        projection=visual.proj is not None,
        pool_include_prefix=pool == "map",
        **attention_pool,
    )
    return Encoder(spec, contiguous(_weights(visual, spec)))


def _attention_pool(visual: Any) -> dict[str, int]:
    """Spec fields of CoCa's attentional pooling, of which only the first query is used."""
    if visual.attn_pool_contrastive is not None:
        raise UnsupportedEncoderError(
            f"attentional pooling of type '{visual.attn_pool_type}' is not supported"
        )
    if visual.pool_type != "tok":
        raise UnsupportedEncoderError(
            f"attentional pooling with pool_type '{visual.pool_type}' takes more than one query; "
            "only 'tok' is supported"
        )
    attention = visual.attn_pool.attn
    return {"pool_heads": attention.num_heads, "pool_width": attention.embed_dim}


def _weights(visual: Any, spec: EncoderSpec) -> Weights:
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
    if spec.pool == "map":
        out |= affine(visual.attn_pool.ln_k, "norm") | _pool_weights(visual)
    else:
        out |= affine(visual.ln_post, "norm")
    if spec.projection:
        out["proj.weight"] = tensor(visual.proj).T
        out["proj.bias"] = torch.zeros(spec.output_dim)
    return out


@torch.no_grad()
def _pool_weights(visual: Any) -> Weights:
    pooler, attention = visual.attn_pool, visual.attn_pool.attn
    width = attention.embed_dim
    if attention.in_proj_weight is not None:  # where width and pool width are equal
        query_weight, *kv = tensor(attention.in_proj_weight).split(width)
    else:
        query_weight = tensor(attention.q_proj_weight)
        kv = [tensor(attention.k_proj_weight), tensor(attention.v_proj_weight)]
    bias = tensor(attention.in_proj_bias)
    query = tensor(pooler.ln_q(pooler.query[:1]))
    return {
        "pool.query": F.linear(query, query_weight, bias[:width])[0],
        "pool.kv.weight": torch.cat(list(kv)),
        "pool.kv.bias": bias[width:],
        **affine(attention.out_proj, "pool.out_proj"),
        **affine(visual.ln_post, "pool.norm"),
    }
