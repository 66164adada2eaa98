"""CLIP's and SigLIP's image towers as transformers names their parameters."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from regcache_export.spec import EncoderSpec

from ..errors import UnsupportedEncoderError
from .parameters import Parameters
from .reading import Weights
from .transformers_blocks import BlockNames, read_blocks, resample_positions
from .transformers_config import Fields

CLIP_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
SIGLIP_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "vision_use_head": True,
}
ANCHORS = ("embeddings.patch_embedding.weight",)
NAMES = BlockNames(
    norm1="layer_norm1",
    norm2="layer_norm2",
    query=("self_attn.q_proj",),
    key=("self_attn.k_proj",),
    value=("self_attn.v_proj",),
    out_proj=("self_attn.out_proj",),
    fc1=("mlp.fc1",),
    fc2=("mlp.fc2",),
)


def clip_spec(fields: Fields, size: tuple[int, int], projection: int | None) -> EncoderSpec:
    """The structure; `projection` is the length of the projected embedding, None without one."""
    width = fields.count("hidden_size")
    return EncoderSpec(
        image_size=size,
        patch_size=fields.pair("patch_size"),
        width=width,
        depth=fields.count("num_hidden_layers"),
        heads=fields.count("num_attention_heads"),
        mlp_width=fields.count("intermediate_size"),
        output_dim=projection or width,
        activation=fields.activation(),
        norm_eps=fields.number("layer_norm_eps"),
        norm_pre=True,
        # the norm of one vector: before or behind taking it is the same
        final_norm="after_pool",
        projection=projection is not None,
    )


def clip_weights(parameters: Parameters, spec: EncoderSpec, fields: Fields) -> Weights:
    """Weights of the image tower; `pre_layrnorm` is spelt so in the files."""
    top = parameters.prefix(ANCHORS)
    positions = parameters.take(f"{top}embeddings.position_embedding.weight")
    patches = resample_positions(positions[1:], spec.grid)
    out = {
        "prefix_tokens": parameters.take(f"{top}embeddings.class_embedding")[None],
        "pos_embed": torch.cat([positions[:1], patches]),
        **parameters.affine("patch_embed", f"{top}embeddings.patch_embedding", bias=False),
        **parameters.affine("norm_pre", f"{top}pre_layrnorm"),
        **parameters.affine("norm", f"{top}post_layernorm"),
        **read_blocks(parameters, f"{top}encoder.layers.", spec, NAMES),
    }
    if spec.projection:
        head = parameters.prefix(("visual_projection.weight",))
        out |= parameters.affine("proj", f"{head}visual_projection", bias=False)
    return out


def siglip_spec(fields: Fields, size: tuple[int, int], projection: int | None) -> EncoderSpec:
    """The structure; SigLIP has attention pooling and no projection.

    Raises:
        UnsupportedEncoderError: the tower was saved without its pooling.
    """
    if not fields.switch("vision_use_head"):
        raise UnsupportedEncoderError(
            "a SigLIP tower without its pooling head (vision_use_head) gives no single embedding"
        )
    width, heads = fields.count("hidden_size"), fields.count("num_attention_heads")
    hidden = fields.count("intermediate_size")
    return EncoderSpec(
        image_size=size,
        patch_size=fields.pair("patch_size"),
        width=width,
        depth=fields.count("num_hidden_layers"),
        heads=heads,
        mlp_width=hidden,
        output_dim=width,
        num_prefix_tokens=0,
        activation=fields.activation(),
        norm_eps=fields.number("layer_norm_eps"),
        pool="map",
        projection=False,
        pool_heads=heads,
        pool_width=width,
        pool_mlp_width=hidden,
    )


@torch.no_grad()
def siglip_weights(parameters: Parameters, spec: EncoderSpec, fields: Fields) -> Weights:
    """Weights of the image tower with its attention pooling."""
    top = parameters.prefix(ANCHORS)
    positions = parameters.take(f"{top}embeddings.position_embedding.weight")
    attention, width = f"{top}head.attention.", spec.width
    packed = parameters.take(f"{attention}in_proj_weight")
    bias = parameters.take(f"{attention}in_proj_bias")
    probe = parameters.take(f"{top}head.probe")[0]
    return {
        "pos_embed": resample_positions(positions, spec.grid),
        **parameters.affine("patch_embed", f"{top}embeddings.patch_embedding"),
        **parameters.affine("norm", f"{top}post_layernorm"),
        **read_blocks(parameters, f"{top}encoder.layers.", spec, NAMES),
        "pool.query": F.linear(probe, packed[:width], bias[:width])[0],
        "pool.kv.weight": packed[width:],
        "pool.kv.bias": bias[width:],
        **parameters.affine("pool.out_proj", f"{attention}out_proj"),
        **parameters.affine("pool.norm", f"{top}head.layernorm"),
        **parameters.affine("pool.mlp.fc1", f"{top}head.mlp.fc1"),
        **parameters.affine("pool.mlp.fc2", f"{top}head.mlp.fc2"),
    }
