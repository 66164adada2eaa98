"""RoBERTa and XLM-R as text towers of open_clip (its `HFTextEncoder`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from regcache_export.text_spec import TextSpec

from ..errors import UnsupportedEncoderError
from .reading import Weights, activation_of, affine, contiguous, single_eps, tensor
from .text_encoder import TextEncoder

KINDS = ("RobertaModel", "XLMRobertaModel")
POOLINGS = {"MeanPooler": "mean", "ClsLastHiddenStatePooler": "first"}


def from_roberta(tower: Any, context_length: int) -> TextEncoder:
    """Read the tower.

    Args:
        tower: open_clip's `HFTextEncoder`.
        context_length: where its tokenizer cuts a text; the model has positions for more.

    Raises:
        UnsupportedEncoderError: another model, or a feature that does not fit.
    """
    model, config = tower.transformer, tower.config
    kind, pooler = type(model).__name__, type(tower.pooler).__name__
    if kind not in KINDS:
        raise UnsupportedEncoderError(f"{kind} of transformers as text tower")
    if pooler not in POOLINGS:
        raise UnsupportedEncoderError(f"a text tower with {pooler}")
    if getattr(config, "position_embedding_type", "absolute") != "absolute":
        raise UnsupportedEncoderError("relative positions in a text tower")
    embeddings, layers = model.embeddings, list(model.encoder.layer)
    pad = int(config.pad_token_id)
    # a text's own tokens are counted from behind the filling's number
    positions = tensor(embeddings.position_embeddings.weight)[pad + 1 :][:context_length]
    weights = {
        "token_embed.weight": tensor(embeddings.word_embeddings.weight),
        "pos_embed": positions + tensor(embeddings.token_type_embeddings.weight)[0],
        **affine(embeddings.LayerNorm, "embed_norm"),
    }
    for index, layer in enumerate(layers):
        weights |= _block(f"blocks.{index}", layer)
    linears = [m for m in tower.proj.modules() if isinstance(m, nn.Linear)]
    for linear, name in zip(linears, ["proj.hidden", "proj"][-len(linears) :], strict=False):
        weights |= affine(linear, name)
    width = weights["token_embed.weight"].shape[1]
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    spec = TextSpec(
        vocab_size=len(weights["token_embed.weight"]),
        context_length=len(positions),
        width=width,
        depth=len(layers),
        heads=int(config.num_attention_heads),
        mlp_width=len(weights["blocks.0.mlp.fc1.weight"]),
        output_dim=len(weights["proj.weight"]) if linears else width,
        activation=_activation(layers[0].intermediate.intermediate_act_fn),
        norm_eps=single_eps(norms),
        causal=False,
        pooling=POOLINGS[pooler],
        projection=bool(linears),
        post_norm=True,
        pad_id=pad,
        projection_hidden=len(weights["proj.hidden.weight"]) if len(linears) > 1 else 0,
    )
    return TextEncoder(spec, contiguous(weights))


def _activation(module: Any) -> Any:
    """Transformers has a class of its own for plain GELU."""
    return "gelu" if type(module).__name__ == "GELUActivation" else activation_of(module)


def _block(name: str, layer: Any) -> Weights:
    own = layer.attention.self
    linears = (own.query, own.key, own.value)
    return {
        f"{name}.attn.qkv.weight": torch.cat([tensor(linear.weight) for linear in linears]),
        f"{name}.attn.qkv.bias": torch.cat([tensor(linear.bias) for linear in linears]),
        **affine(layer.attention.output.dense, f"{name}.attn.out_proj"),
        **affine(layer.attention.output.LayerNorm, f"{name}.norm1"),
        **affine(layer.intermediate.dense, f"{name}.mlp.fc1"),
        **affine(layer.output.dense, f"{name}.mlp.fc2"),
        **affine(layer.output.LayerNorm, f"{name}.norm2"),
    }
