"""timm's pre-norm blocks: what of them fits the canonical block, and their weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regcache_export.spec import Activation

from ..errors import UnsupportedEncoderError
from .reading import Weights, activation_of, affine, is_norm, tensor

BLOCKS = ("Block", "EvaBlock")
MLPS = ("Mlp", "GluMlp", "SwiGLU", "GeGluMlp")
ATTENTIONS = ("Attention", "EvaAttention", "AttentionRope")


def check_blocks(blocks: Sequence[Any]) -> None:
    """Raise UnsupportedEncoderError, naming the feature, where a block does not fit."""
    for block in blocks:
        kind = type(block).__name__
        if kind == "EvaBlockPostNorm":
            raise UnsupportedEncoderError("post-norm blocks are not supported (EvaBlockPostNorm)")
        if kind not in BLOCKS:
            raise UnsupportedEncoderError(f"unsupported block type {kind}")
        attention, mlp = block.attn, block.mlp
        if type(attention).__name__ not in ATTENTIONS:
            raise UnsupportedEncoderError(f"unsupported attention {type(attention).__name__}")
        if type(mlp).__name__ not in MLPS:
            raise UnsupportedEncoderError(f"unsupported MLP {type(mlp).__name__}")
        if mlp_activation(mlp) != mlp_activation(blocks[0].mlp):
            raise UnsupportedEncoderError("blocks with different activations are not supported")
        if has_own_norm(mlp) != has_own_norm(blocks[0].mlp):
            raise UnsupportedEncoderError("a norm in front of fc1 in some blocks is not supported")
        if not (is_norm(block.norm1) and is_norm(block.norm2)):
            raise UnsupportedEncoderError("a block without its two norms is not supported")
        if getattr(attention, "num_kv_heads", attention.num_heads) != attention.num_heads:
            raise UnsupportedEncoderError("grouped-query attention is not supported")
        if attention.head_dim * attention.num_heads != attention.proj.out_features:
            raise UnsupportedEncoderError(
                f"{attention.num_heads} heads of {attention.head_dim} do not make up the width "
                f"{attention.proj.out_features}; such attention is not supported"
            )
        for module, feature in (
            (attention.q_norm, "QK norm"),
            (getattr(attention, "gate", None), "gated attention"),
        ):
            if module is not None and not isinstance(module, nn.Identity):
                raise UnsupportedEncoderError(f"{feature} is not supported")


def sub_norms(blocks: Sequence[Any]) -> tuple[bool, bool]:
    """Whether every block normalizes in front of out_proj, and in front of fc2 (EVA-02).

    Raises:
        UnsupportedEncoderError: some blocks do, others do not, or not by a LayerNorm.
    """
    found = []
    for where, norms in (
        ("attention", [block.attn.norm for block in blocks]),
        ("the MLP", [_last_norm(block.mlp) for block in blocks]),
    ):
        there = [norm is not None and not isinstance(norm, nn.Identity) for norm in norms]
        if any(there) and not all(isinstance(norm, nn.LayerNorm) for norm in norms):
            raise UnsupportedEncoderError(f"such a norm inside {where} is not supported")
        found.append(all(there))
    return found[0], found[1]


def has_layer_scale(block: Any) -> bool:
    return any(scale is not None for scale in _scales(block))


def block_weights(block: Any, name: str, layer_scale: bool, rotary: bool) -> Weights:
    """Weights of one block under `name`, e.g. `blocks.0`."""
    out = affine(block.norm1, f"{name}.norm1")
    if has_own_norm(block.mlp):
        out |= affine(block.norm2, f"{name}.norm2_pre") | affine(block.mlp.norm, f"{name}.norm2")
    else:
        out |= affine(block.norm2, f"{name}.norm2")
    out |= _qkv(block.attn, f"{name}.attn.qkv")
    if rotary and not getattr(block.attn, "rotate_half", False):
        heads = block.attn.num_heads
        for part in ("weight", "bias"):
            packed = f"{name}.attn.qkv.{part}"
            out[packed] = _pairs_to_halves(out[packed], heads)
    out |= _behind(block.attn.norm, affine(block.attn.proj, f"{name}.attn.out_proj"))
    out |= _fc1(block.mlp, f"{name}.mlp.fc1")
    out |= _behind(_last_norm(block.mlp), affine(_fc2(block.mlp), f"{name}.mlp.fc2"))
    if layer_scale:
        width = block.attn.proj.out_features
        for part, scale in zip(("ls1", "ls2"), _scales(block), strict=True):
            out[f"{name}.{part}"] = torch.ones(width) if scale is None else tensor(scale)
    return out


def _pairs_to_halves(qkv: Tensor, heads: int) -> Tensor:
    """Sort query and key rows of `[3D, ...]`: channels 2i, 2i + 1 of a head to i, i + d/2.

    Their products stay what they are, since both are sorted alike.
    """
    q, k, v = qkv.chunk(3)
    sorted_rows = [
        part.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(part.shape) for part in (q, k)
    ]
    return torch.cat([*sorted_rows, v])


def mlp_activation(mlp: Any) -> Activation:
    """The canonical name of what is between fc1 and fc2.

    Raises:
        UnsupportedEncoderError: another function.
    """
    if type(mlp).__name__ == "Mlp":
        return activation_of(mlp.act)
    if isinstance(mlp.act, nn.SiLU):
        return "swiglu"
    if isinstance(mlp.act, nn.GELU) and mlp.act.approximate == "none":
        return "geglu"
    raise UnsupportedEncoderError(
        f"a gated MLP with {type(mlp.act).__name__} in place of SiLU or GELU is not supported"
    )


def mlp_width(mlp: Any) -> int:
    """Inputs of fc2."""
    return int(_fc2(mlp).in_features)


def has_own_norm(mlp: Any) -> bool:
    """Whether the MLP begins with a LayerNorm (ViTamin), behind the block's own."""
    return type(mlp).__name__ == "GeGluMlp" and is_norm(mlp.norm)


def _last_norm(mlp: Any) -> Any:
    """What is in front of fc2; ViTamin's MLP has its norm elsewhere."""
    return None if type(mlp).__name__ == "GeGluMlp" else mlp.norm


def _fc2(mlp: Any) -> Any:
    return mlp.w2 if type(mlp).__name__ == "GeGluMlp" else mlp.fc2


HALVES = {"SwiGLU": ("fc1_g", "fc1_x"), "GeGluMlp": ("w0", "w1")}
"""Gate and value where they are two linears."""


def _fc1(mlp: Any, name: str) -> Weights:
    """The first linear; the gate's rows come first, wherever timm has them."""
    if type(mlp).__name__ in HALVES:
        halves = [affine(getattr(mlp, half), name) for half in HALVES[type(mlp).__name__]]
        return {key: torch.cat([half[key] for half in halves]) for key in halves[0]}
    out = affine(mlp.fc1, name)
    if type(mlp).__name__ == "GluMlp" and mlp.gate_last:
        return {key: torch.cat(value.chunk(2)[::-1]) for key, value in out.items()}
    return out


def _behind(norm: Any, linear: Weights) -> Weights:
    """A linear that has the weights of the LayerNorm in front of it: `W (g x + b) + c`."""
    if not isinstance(norm, nn.LayerNorm) or not norm.elementwise_affine:
        return linear
    (name, weight), (bias_name, bias) = (
        next((n, t.double()) for n, t in linear.items() if n.endswith(part))
        for part in (".weight", ".bias")
    )
    gain, shift = tensor(norm.weight).double(), tensor(norm.bias).double()
    return {name: (weight * gain).float(), bias_name: (bias + weight @ shift).float()}


def _scales(block: Any) -> tuple[Tensor | None, Tensor | None]:
    if hasattr(block, "ls1"):
        first, second = (getattr(m, "gamma", None) for m in (block.ls1, block.ls2))
        return first, second
    return getattr(block, "gamma_1", None), getattr(block, "gamma_2", None)


def _qkv(attention: Any, name: str) -> Weights:
    """The packed QKV linear; EVA keeps three linears, or one with two separate biases."""
    if getattr(attention, "qkv", None) is None:
        parts = [affine(getattr(attention, f"{p}_proj"), p) for p in "qkv"]
        weight = torch.cat([part[f"{p}.weight"] for p, part in zip("qkv", parts, strict=True)])
        bias = torch.cat([part[f"{p}.bias"] for p, part in zip("qkv", parts, strict=True)])
        return {f"{name}.weight": weight, f"{name}.bias": bias}
    out = affine(attention.qkv, name)
    if getattr(attention, "q_bias", None) is not None:
        biases = (attention.q_bias, torch.zeros_like(attention.q_bias), attention.v_bias)
        out[f"{name}.bias"] = torch.cat([tensor(b) for b in biases])
    return out
