"""The canonical text tower in PyTorch, and reading open_clip's into it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regcache_export.text_spec import TextSpec

from ..errors import UnsupportedEncoderError
from .canonical import ACTIVATIONS
from .reading import Weights, activation_of, affine, is_norm, single_eps, tensor


@dataclass(frozen=True)
class TextEncoder:
    """Structure and weights (float32, names of `text_spec`); call it with token ids."""

    spec: TextSpec
    weights: Weights = field(repr=False)

    @torch.no_grad()
    def __call__(self, ids: Tensor) -> Tensor:
        """Token ids int64 `[b, L]` -> embeddings `[b, E]`, not L2-normalized."""
        spec, w = self.spec, self.weights
        x = w["token_embed.weight"][ids] + w["pos_embed"][: ids.shape[1]]
        own = None if spec.pad_id is None else torch.ne(ids, spec.pad_id)
        if spec.post_norm:
            x = self._norm("embed_norm", x)
        for index in range(spec.depth):
            x = self._block(f"blocks.{index}", x, own)
        x = self._pool(x, ids, own)
        x = x if spec.post_norm else self._norm("norm", x)
        if spec.projection_hidden:
            x = F.gelu(self._linear("proj.hidden", x))
        return self._linear("proj", x) if spec.projection else x

    def _pool(self, x: Tensor, ids: Tensor, own: Tensor | None) -> Tensor:
        if self.spec.pooling == "mean":
            assert own is not None
            return (x * own[..., None]).sum(dim=1) / own.sum(dim=1, keepdim=True)
        return x[torch.arange(len(ids)), self._places(ids)]

    def sha256(self) -> str:
        """Hash of structure and weights."""
        digest = hashlib.sha256(repr(self.spec).encode())
        for name in sorted(self.weights):
            digest.update(name.encode())
            digest.update(self.weights[name].contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _places(self, ids: Tensor) -> Tensor:
        if self.spec.pooling in ("first", "last"):
            return torch.full((len(ids),), -(self.spec.pooling == "last"))
        marks = ids
        if self.spec.pooling == "eos":
            assert self.spec.eos_id is not None
            marks = torch.eq(ids, self.spec.eos_id)
        return marks.int().argmax(dim=1)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        parameters = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.layer_norm(x, x.shape[-1:], *parameters, self.spec.norm_eps)

    def _block(self, name: str, x: Tensor, own: Tensor | None) -> Tensor:
        """`own`: which tokens are seen, `[b, L]`; None for all."""
        spec = self.spec

        def norm(which: str, x: Tensor, here: bool) -> Tensor:
            return self._norm(f"{name}.{which}", x) if here else x

        qkv = self._linear(f"{name}.attn.qkv", norm("norm1", x, not spec.post_norm))
        q, k, v = qkv.unflatten(-1, (3, spec.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = None if own is None else own[:, None, None, :]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=spec.causal)
        x = x + self._linear(f"{name}.attn.out_proj", mixed.transpose(1, 2).flatten(2))
        x = norm("norm1", x, spec.post_norm)
        hidden = self._linear(f"{name}.mlp.fc1", norm("norm2", x, not spec.post_norm))
        x = x + self._linear(f"{name}.mlp.fc2", ACTIVATIONS[spec.activation](hidden))
        return norm("norm2", x, spec.post_norm)


def from_open_clip_text(model: Any) -> TextEncoder:
    """The text tower of an open_clip model.

    Raises:
        UnsupportedEncoderError: it does not fit; the message names the feature.
    """
    tower = getattr(model, "text", model)
    _refuse(tower)
    blocks = list(tower.transformer.resblocks)
    first = blocks[0]
    projection = tower.text_projection
    causal = tower.attn_mask is not None
    pooling = getattr(tower, "pool_type", None) or tower.text_pool_type
    eos = getattr(tower, "eos_id", getattr(tower, "text_eos_id", None))
    width = tower.token_embedding.weight.shape[1]
    norms = [m for block in blocks for m in block.modules() if isinstance(m, nn.LayerNorm)]
    weights = {
        "token_embed.weight": tensor(tower.token_embedding.weight),
        "pos_embed": tensor(tower.positional_embedding),
        **affine(tower.ln_final, "norm"),
    }
    for index, block in enumerate(blocks):
        weights |= _block(f"blocks.{index}", block)
    if projection is not None:
        weights |= _projection(projection)
    spec = TextSpec(
        vocab_size=len(weights["token_embed.weight"]),
        context_length=len(weights["pos_embed"]),
        width=width,
        depth=len(blocks),
        heads=first.attn.num_heads,
        mlp_width=len(weights["blocks.0.mlp.fc1.weight"]),
        output_dim=width if projection is None else len(weights["proj.weight"]),
        activation=activation_of(first.mlp.gelu),
        norm_eps=single_eps([*norms, tower.ln_final]),
        causal=causal,
        pooling=pooling,
        eos_id=eos if pooling == "eos" else None,
        projection=projection is not None,
    )
    return TextEncoder(spec, {name: value.contiguous() for name, value in weights.items()})


def _refuse(tower: Any) -> None:
    if not hasattr(tower, "token_embedding"):
        raise UnsupportedEncoderError(f"a text tower of another library ({type(tower).__name__})")
    if getattr(tower, "cls_emb", None) is not None:
        raise UnsupportedEncoderError("a class token behind the text (CoCa)")
    if getattr(tower, "use_pad_mask", False):
        raise UnsupportedEncoderError("attention that masks padding")
    kinds = {type(block).__name__ for block in tower.transformer.resblocks}
    if kinds != {"ResidualAttentionBlock"}:
        raise UnsupportedEncoderError(f"text blocks of kind {', '.join(sorted(kinds))}")
    pooling = getattr(tower, "pool_type", None) or getattr(tower, "text_pool_type", None)
    if pooling not in ("argmax", "eos", "first", "last"):
        raise UnsupportedEncoderError(f"text pooling '{pooling}'")
    is_norm(tower.ln_final)


def _block(name: str, block: Any) -> Weights:
    is_norm(block.ln_1)
    is_norm(block.ln_2)
    attention = block.attn
    out = {
        f"{name}.attn.qkv.weight": tensor(attention.in_proj_weight),
        f"{name}.attn.qkv.bias": tensor(attention.in_proj_bias),
        **affine(block.ln_1, f"{name}.norm1"),
        **affine(block.ln_2, f"{name}.norm2"),
        **affine(attention.out_proj, f"{name}.attn.out_proj"),
        **affine(block.mlp.c_fc, f"{name}.mlp.fc1"),
        **affine(block.mlp.c_proj, f"{name}.mlp.fc2"),
    }
    for scale, linear in ((block.ls_1, "attn.out_proj"), (block.ls_2, "mlp.fc2")):
        if not isinstance(scale, nn.Identity):
            gamma = tensor(scale.gamma)
            out[f"{name}.{linear}.weight"] = out[f"{name}.{linear}.weight"] * gamma[:, None]
            out[f"{name}.{linear}.bias"] = out[f"{name}.{linear}.bias"] * gamma
    return out


def _projection(projection: Any) -> Weights:
    if isinstance(projection, nn.Linear):
        return affine(projection, "proj")
    weight = tensor(projection).T
    return {"proj.weight": weight, "proj.bias": weight.new_zeros(len(weight))}
