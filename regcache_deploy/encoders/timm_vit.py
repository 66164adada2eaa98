"""Adapter: timm's `VisionTransformer` (DINOv2, DeiT, CLIP, SigLIP, ViTamin) and plain `Eva`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from regcache_export.spec import EncoderSpec, FinalNorm, Pool

from ..errors import UnsupportedEncoderError
from .canonical import Encoder
from .reading import Weights, activation_of, affine, contiguous, is_norm, single_eps, tensor
from .timm_blocks import (
    block_weights,
    check_blocks,
    has_layer_scale,
    has_own_norm,
    mlp_activation,
    mlp_width,
    sub_norms,
)
from .timm_stem import read_stem

FEATURES = {
    "Beit": "a relative position bias in attention",
    "VisionTransformerRelPos": "a relative position bias in attention",
    "VisionTransformerSAM": "window attention with relative positions",
    "VisionTransformerDistilled": "a distillation token (the mean of two class tokens)",
    "SwinTransformer": "window attention",
    "SwinTransformerV2": "window attention",
    "NaFlexVit": "images of varying shape (NaFlex)",
    "ConvNeXt": "a convolutional network",
    "FastVit": "a convolutional network",
}
"""What keeps other towers of timm from being canonical."""

ROTARY = ("RotaryEmbeddingCat", "RotaryEmbeddingDinoV3")
"""Kinds of RoPE with one table of angles for all blocks and heads."""

POOLS: dict[str, Pool] = {"token": "cls", "avg": "avg", "map": "map"}


def from_timm(trunk: Any, projection: nn.Linear | None = None) -> Encoder:
    """Read a timm ViT; its own head, if it is a linear one, is the projection.

    Args:
        trunk: `timm.models.vision_transformer.VisionTransformer`, or a `timm.models.eva.Eva`.
        projection: a linear layer behind the trunk (open_clip's `head.proj`).

    Returns:
        The canonical encoder; its weights are float32 copies of the module's parameters.

    Raises:
        UnsupportedEncoderError: the tower uses a feature that the canonical encoder lacks.
    """
    check_kind(trunk)
    _check_embedding(trunk)
    blocks = list(trunk.blocks)
    check_blocks(blocks)
    pool = POOLS.get(trunk.global_pool)
    if pool is None:
        raise UnsupportedEncoderError(f"unsupported pooling '{trunk.global_pool}'")
    head = _single_projection(trunk, projection)
    attention_pool = _attention_pool(trunk) if pool == "map" else {}
    final_norm = _final_norm(trunk, pool)
    attn_norm, mlp_norm = sub_norms(blocks)
    first, patch = blocks[0], trunk.patch_embed
    hybrid = type(patch).__name__ == "HybridEmbed"
    stem, stem_weights = read_stem(patch) if hybrid else ((), {})
    patch_size = patch.feat_ratio(as_scalar=False) if hybrid else patch.patch_size
    spec = EncoderSpec(
        image_size=(patch.img_size[0], patch.img_size[1]),
        patch_size=(patch_size[0], patch_size[1]),
        width=trunk.embed_dim,
        depth=len(blocks),
        heads=first.attn.num_heads,
        mlp_width=mlp_width(first.mlp),
        output_dim=head.out_features if head is not None else trunk.embed_dim,
        num_prefix_tokens=trunk.num_prefix_tokens,
        activation=mlp_activation(first.mlp),
        norm_eps=single_eps(_behind_the_stem(trunk)),
        norm_pre=is_norm(trunk.norm_pre),
        layer_scale=has_layer_scale(first),
        final_norm=final_norm,
        pool=pool,
        projection=head is not None,
        # Eva has no such switch: its attention pooling sees all tokens
        pool_include_prefix=bool(getattr(trunk, "pool_include_prefix", pool == "map")),
        rotary=getattr(trunk, "rope", None) is not None,
        attn_norm=attn_norm,
        mlp_norm=mlp_norm,
        norm2_pre=has_own_norm(first.mlp),
        stem=stem,
        **attention_pool,
    )
    return Encoder(spec, contiguous(stem_weights | _weights(trunk, spec, head)))


def check_kind(trunk: Any) -> None:
    """Raise UnsupportedEncoderError unless `trunk` is a plain ViT by its class."""
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    if type(trunk) not in (VisionTransformer, Eva):
        kind = type(trunk).__name__
        feature = FEATURES.get(kind, f"an architecture of its own ({kind})")
        raise UnsupportedEncoderError(
            f"{feature} is not supported: the image tower is timm's {kind}, no plain ViT"
        )
    rope = getattr(trunk, "rope", None)
    if rope is not None and type(rope).__name__ not in ROTARY:
        raise UnsupportedEncoderError(
            f"rotary position embedding (RoPE) of the kind {type(rope).__name__} is not supported"
        )


def _check_embedding(trunk: Any) -> None:
    patch = trunk.patch_embed
    if type(patch).__name__ not in ("PatchEmbed", "HybridEmbed"):
        raise UnsupportedEncoderError(f"unsupported patch embedding {type(patch).__name__}")
    if is_norm(getattr(patch, "norm", None)):
        raise UnsupportedEncoderError("a norm inside the patch embedding is not supported")
    if patch.img_size is None or patch.dynamic_img_pad:
        raise UnsupportedEncoderError(
            "a patch embedding of unknown or padded image size is not supported"
        )


def _behind_the_stem(trunk: Any) -> Iterator[nn.Module]:
    for name, module in trunk.named_modules():
        if not name.startswith("patch_embed."):
            yield module


def _final_norm(trunk: Any, pool: Pool) -> FinalNorm:
    before, after = is_norm(trunk.norm), is_norm(trunk.fc_norm)
    if after and (before or pool == "map"):
        raise UnsupportedEncoderError(
            "a norm after pooling on top of the one before is unsupported"
        )
    if after:
        return "after_pool"
    return "before_pool" if before else "none"


def _single_projection(trunk: Any, projection: nn.Linear | None) -> nn.Linear | None:
    head = trunk.head
    if isinstance(head, nn.Identity):
        return projection
    if not isinstance(head, nn.Linear):
        raise UnsupportedEncoderError(f"unsupported head {type(head).__name__}")
    if projection is not None:
        raise UnsupportedEncoderError("a classifier followed by a projection is not supported")
    return head


def _attention_pool(trunk: Any) -> dict[str, int]:
    pool = trunk.attn_pool
    for condition, feature in (
        (type(pool).__name__ != "AttentionPoolLatent", f"pooling {type(pool).__name__}"),
        (getattr(pool, "pos_embed", None) is not None, "attention pooling with positions"),
        (getattr(pool, "latent_len", 1) != 1, "attention pooling with several latents"),
        (getattr(pool, "pool", "token") != "token", "attention pooling with several outputs"),
        (is_norm(getattr(pool, "q_norm", None)), "QK norm in attention pooling"),
        (getattr(pool, "mlp", None) is None, "attention pooling without its MLP"),
        (not is_norm(getattr(pool, "norm", None)), "attention pooling without its norm"),
    ):
        if condition:
            raise UnsupportedEncoderError(f"{feature} is not supported")
    if activation_of(pool.mlp.act) != mlp_activation(trunk.blocks[0].mlp):
        raise UnsupportedEncoderError("pooling with another activation than the blocks'")
    return {
        "pool_heads": pool.num_heads,
        "pool_width": pool.kv.out_features // 2,
        "pool_mlp_width": pool.mlp.fc1.out_features,
    }


def _weights(trunk: Any, spec: EncoderSpec, head: nn.Linear | None) -> Weights:
    out = {} if spec.stem else affine(trunk.patch_embed.proj, "patch_embed")
    special = [t for t in (trunk.cls_token, trunk.reg_token) if t is not None]
    if special:
        out["prefix_tokens"] = torch.cat([tensor(t)[0] for t in special])
    out["pos_embed"] = _positions(trunk, spec)
    if spec.rotary:
        out["rotary"] = _angles(trunk, spec)
    if spec.norm_pre:
        out |= affine(trunk.norm_pre, "norm_pre")
    for i, block in enumerate(trunk.blocks):
        out |= block_weights(block, f"blocks.{i}", spec.layer_scale, spec.rotary)
    if spec.final_norm != "none":
        out |= affine(trunk.fc_norm if spec.final_norm == "after_pool" else trunk.norm, "norm")
    if spec.pool == "map":
        out |= _pool_weights(trunk.attn_pool)
    if head is not None:
        out |= affine(head, "proj")
    return out


def _positions(trunk: Any, spec: EncoderSpec) -> torch.Tensor:
    """`[N, D]`; zeros where a token has no position embedding."""
    if trunk.pos_embed is None:
        return torch.zeros(spec.num_tokens, spec.width)
    positions = tensor(trunk.pos_embed)[0]
    without = positions.new_zeros(spec.num_tokens - len(positions), spec.width)
    return torch.cat([without, positions])


def _angles(trunk: Any, spec: EncoderSpec) -> torch.Tensor:
    """`[N, d]`: cosines, then sines; special tokens are not turned."""
    # timm has the sines first, and each angle twice: side by side, or in both halves
    sin, cos = tensor(trunk.rope.get_embed(list(spec.grid))).chunk(2, dim=-1)
    once = (
        slice(0, spec.head_dim // 2)
        if getattr(trunk.rope, "rotate_half", False)
        else slice(0, None, 2)
    )
    patches = torch.cat([cos[:, once], sin[:, once]], dim=-1)
    special = torch.zeros(spec.num_prefix_tokens, spec.head_dim)
    special[:, : spec.head_dim // 2] = 1
    return torch.cat([special.to(patches), patches])


@torch.no_grad()
def _pool_weights(pool: Any) -> Weights:
    latent = tensor(pool.latent)[0]
    query = affine(pool.q, "q") if isinstance(pool.q, nn.Linear) else None
    return {
        "pool.query": (F.linear(latent, *query.values()) if query else latent)[0],
        **affine(pool.kv, "pool.kv"),
        **affine(pool.proj, "pool.out_proj"),
        **affine(pool.norm, "pool.norm"),
        **affine(pool.mlp.fc1, "pool.mlp.fc1"),
        **affine(pool.mlp.fc2, "pool.mlp.fc2"),
    }
