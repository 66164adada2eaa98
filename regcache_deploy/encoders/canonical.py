"""The canonical encoder: one pre-norm ViT forward pass for every family.

The arithmetic of the linears and of the attention products goes through a `Numerics` object, so
that the float model, the observers and the quantized simulation share this file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from regcache_export.merge import Merge
from regcache_export.spec import EncoderSpec

from ..errors import ModelError
from .merging import Pairs, find_pairs, log_sizes, merge_as_published, merge_patches, require_sizes
from .regcache import RegCache, kept_patches, take_patches
from .rotary import Survivors, angles_of, rotate
from .stem import run_stem


class Numerics(Protocol):
    """How linears and attention products are computed. `name` is e.g. `blocks.3.mlp.fc2`."""

    def linear(self, name: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """`x [..., C_in]`, `weight [C_out, C_in]`, `bias [C_out]` -> `[..., C_out]`."""
        ...

    def matmul(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        """Attention products over T keys, the prefix in front.

        `blocks.I.attn.qk`: `[B, H, N, d] @ [B, H, d, T]`;
        `blocks.I.attn.pv`: `[B, H, N, T] @ [B, H, T, d]`.
        """
        ...


class FloatNumerics:
    """Plain floating point."""

    def linear(self, name: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(x, weight, bias)

    def matmul(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        return a @ b


FLOAT = FloatNumerics()


def swiglu(x: Tensor) -> Tensor:
    """`[..., 2M]` -> `[..., M]`: the SiLU of the first half times the second."""
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


def geglu(x: Tensor) -> Tensor:
    """`[..., 2M]` -> `[..., M]`: the GELU of the first half times the second."""
    gate, value = x.chunk(2, dim=-1)
    return F.gelu(gate) * value


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "swiglu": swiglu,
    "geglu": geglu,
}

Observer = Callable[[int, Tensor], None]
"""Called with the block index and the tokens `[B, N, D]` at its input, before deletion."""


@dataclass(frozen=True)
class Encoder:
    """Structure and weights of a pre-norm ViT.

    Attributes:
        spec: the structure.
        weights: float tensors, named as in `regcache_export.spec`.
        merge: how its blocks merge tokens; None for the encoder as it was trained.
    """

    spec: EncoderSpec
    weights: Mapping[str, Tensor] = field(repr=False)
    merge: Merge | None = None

    def __post_init__(self) -> None:
        expected = self.spec.weight_shapes()
        missing = sorted(expected.keys() - self.weights.keys())
        if missing:
            raise ModelError(f"missing weights: {', '.join(missing[:4])}")
        for name, shape in expected.items():
            if tuple(self.weights[name].shape) != shape:
                raise ModelError(
                    f"weight {name} has shape {tuple(self.weights[name].shape)}, expected {shape}"
                )
        self.check_merge()

    def check_merge(self, regcache: RegCache | None = None) -> None:
        """Raise ConfigError where the merge does not fit the encoder, or leaves too few tokens."""
        if self.merge is not None:
            self.merge.check(self.spec, regcache.config if regcache else None)

    @property
    def device(self) -> torch.device:
        """Where the weights are; images are brought there by `embed`."""
        return self.weights["pos_embed"].device

    def to(self, device: torch.device | str) -> Encoder:
        """The same encoder with its weights on a device."""
        moved = {name: weight.to(device) for name, weight in self.weights.items()}
        return Encoder(self.spec, moved, self.merge)

    def replace(self, weights: Mapping[str, Tensor]) -> Encoder:
        """The same encoder with some weights exchanged."""
        return Encoder(self.spec, {**self.weights, **weights}, self.merge)

    def merging(self, merge: Merge | None) -> Encoder:
        """The same encoder with tokens merged, or with None, as it was trained."""
        return Encoder(self.spec, self.weights, merge)

    def check_finite(self) -> None:
        """Raise ModelError where a weight is NaN or infinite."""
        for name, weight in self.weights.items():
            if not torch.isfinite(weight).all():
                raise ModelError(
                    f"weight {name} holds NaN or infinite values; the checkpoint is damaged"
                )

    def __call__(
        self,
        images: Tensor,
        numerics: Numerics = FLOAT,
        regcache: RegCache | None = None,
        observe: Observer | None = None,
    ) -> Tensor:
        """Images `[B, 3, H, W]` (normalized) -> embeddings `[B, E]` (not L2-normalized)."""
        survivors = Survivors()
        tokens = self.run_blocks(
            self.embed(images),
            numerics=numerics,
            regcache=regcache,
            observe=observe,
            survivors=survivors,
        )
        return self.pool(tokens, survivors)

    def embed(self, images: Tensor) -> Tensor:
        """Images `[B, 3, H, W]` -> tokens `[B, N, D]` at the input of block 0."""
        w, images = self.weights, images.to(self.device)
        if self.spec.stem:
            patches = run_stem(self.spec.stem, w, images)
        else:
            patches = F.conv2d(
                images, w["patch_embed.weight"], w["patch_embed.bias"], stride=self.spec.patch_size
            )
        tokens = patches.flatten(2).transpose(1, 2)
        if self.spec.num_prefix_tokens:
            special = w["prefix_tokens"].expand(tokens.shape[0], -1, -1)
            tokens = torch.cat([special, tokens], dim=1)
        tokens = tokens + w["pos_embed"]
        return self.norm("norm_pre", tokens) if self.spec.norm_pre else tokens

    def run_blocks(
        self,
        tokens: Tensor,
        start: int = 0,
        stop: int | None = None,
        numerics: Numerics = FLOAT,
        regcache: RegCache | None = None,
        observe: Observer | None = None,
        survivors: Survivors | None = None,
    ) -> Tensor:
        """Tokens `[B, N, D]` at the input of block `start` -> tokens at the input of `stop`.

        `survivors` says what the tokens are when they come in and when they go out; whoever goes on
        from merged tokens hands it in.

        Raises:
            ConfigError: the merge leaves fewer tokens than `regcache` deletes.
        """
        self.check_merge(regcache)
        survivors = survivors or Survivors()
        for index in range(start, self.spec.depth if stop is None else stop):
            if observe is not None:
                observe(index, tokens)
            tokens = self.block(index, tokens, numerics, regcache, survivors)
        return tokens

    def block(
        self,
        index: int,
        tokens: Tensor,
        numerics: Numerics = FLOAT,
        regcache: RegCache | None = None,
        survivors: Survivors | None = None,
    ) -> Tensor:
        """One block; with `regcache`, its prefix and its deletion where they belong here.

        Whoever runs blocks one by one past a deletion or a merge hands the same `survivors` to
        each.
        """
        w, name = self.weights, f"blocks.{index}"
        survivors = survivors or Survivors()
        tokens, _ = self._delete(index, tokens, regcache, "block_input", survivors)
        normed = self.norm(f"{name}.norm1", tokens)
        update, keys = self._attention(index, normed, numerics, regcache, survivors)
        tokens = tokens + (update * w[f"{name}.ls1"] if self.spec.layer_scale else update)
        tokens, metric = self._delete(index, tokens, regcache, "mlp_input", survivors, keys)
        tokens = self._merge(index, tokens, metric, survivors)
        normed = self.norm(f"{name}.norm2_pre", tokens) if self.spec.norm2_pre else tokens
        hidden = self._linear(f"{name}.mlp.fc1", self.norm(f"{name}.norm2", normed), numerics)
        hidden = ACTIVATIONS[self.spec.activation](hidden)
        if self.spec.mlp_norm:
            hidden = self.plain_norm(hidden)
        update = self._linear(f"{name}.mlp.fc2", hidden, numerics)
        return tokens + (update * w[f"{name}.ls2"] if self.spec.layer_scale else update)

    def pool(self, tokens: Tensor, survivors: Survivors | None = None) -> Tensor:
        """Tokens `[B, N, D]` after the last block -> embeddings `[B, E]`.

        `survivors` is needed behind merged tokens: a mean counts every patch.
        """
        spec, w = self.spec, self.weights
        sizes = None
        if spec.pool != "cls":
            sizes = require_sizes(self.merge, spec.depth, survivors)
            if sizes is not None and spec.pool_include_prefix:
                sizes = F.pad(sizes, (spec.num_prefix_tokens, 0), value=1.0)
        if spec.pool != "cls" and not spec.pool_include_prefix:
            tokens = tokens[:, spec.num_prefix_tokens :]
        if spec.final_norm == "before_pool":
            tokens = self.norm("norm", tokens)
        if spec.pool == "cls":
            pooled = tokens[:, 0]
        elif spec.pool == "map":
            pooled = self._attention_pool(tokens, sizes)
        elif sizes is not None:
            share = sizes / sizes.sum(dim=1, keepdim=True)
            pooled = (share.unsqueeze(1) @ tokens).squeeze(1)
        else:
            pooled = tokens.mean(dim=1)
        if spec.final_norm == "after_pool":
            pooled = self.norm("norm", pooled)
        if spec.projection:
            pooled = F.linear(pooled, w["proj.weight"], w["proj.bias"])
        return pooled

    def _attention_pool(self, tokens: Tensor, sizes: Tensor | None = None) -> Tensor:
        """One constant query attends to tokens `[B, N, D]` of `sizes [B, N]` -> `[B, A]`."""
        w, heads = self.weights, self.spec.pool_heads
        batch, count, _ = tokens.shape
        kv = F.linear(tokens, w["pool.kv.weight"], w["pool.kv.bias"])
        k, v = kv.view(batch, count, 2, heads, -1).permute(2, 0, 3, 1, 4)
        query = w["pool.query"].view(1, heads, 1, -1) * k.shape[-1] ** -0.5
        logits = query @ k.transpose(-2, -1)
        if sizes is not None:
            logits = logits + sizes.log()[:, None, None]
        mixed = (logits.softmax(dim=-1) @ v).reshape(batch, -1)
        pooled = F.linear(mixed, w["pool.out_proj.weight"], w["pool.out_proj.bias"])
        normed = self.norm("pool.norm", pooled)
        if not self.spec.pool_mlp_width:
            return normed
        hidden = F.linear(normed, w["pool.mlp.fc1.weight"], w["pool.mlp.fc1.bias"])
        hidden = ACTIVATIONS[self.spec.activation](hidden)
        return pooled + F.linear(hidden, w["pool.mlp.fc2.weight"], w["pool.mlp.fc2.bias"])

    def norm(self, name: str, x: Tensor) -> Tensor:
        """LayerNorm over the last axis with the weights `name.weight`, `name.bias`."""
        w = self.weights
        return F.layer_norm(
            x, (x.shape[-1],), w[f"{name}.weight"], w[f"{name}.bias"], self.spec.norm_eps
        )

    def plain_norm(self, x: Tensor) -> Tensor:
        """LayerNorm over the last axis without weights."""
        return F.layer_norm(x, (x.shape[-1],), eps=self.spec.norm_eps)

    def prefix_kv(self, index: int, register: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a register in one block.

        Args:
            index: block.
            register: mean LN1 output `[D]`.

        Returns:
            K and V, each `[1, H, 1, d]`.
        """
        d = self.spec.width
        weight = self.weights[f"blocks.{index}.attn.qkv.weight"][d:]
        bias = self.weights[f"blocks.{index}.attn.qkv.bias"][d:]
        k, v = F.linear(register, weight, bias).view(2, 1, self.spec.heads, 1, self.spec.head_dim)
        return k, v

    def _linear(self, name: str, x: Tensor, numerics: Numerics) -> Tensor:
        return numerics.linear(
            name, x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        )

    def _attention(
        self,
        index: int,
        x: Tensor,
        numerics: Numerics,
        regcache: RegCache | None,
        survivors: Survivors,
    ) -> tuple[Tensor, Tensor]:
        """Update of the tokens `[B, N, D]`, and the mean over heads of their keys `[B, N, d]`."""
        batch, count, width = x.shape
        heads, head_dim = self.spec.heads, self.spec.head_dim
        name = f"blocks.{index}.attn"
        qkv = self._linear(f"{name}.qkv", x, numerics)
        q, k, v = qkv.view(batch, count, 3, heads, head_dim).permute(2, 0, 3, 1, 4)
        if self.spec.rotary:
            special = self.spec.num_prefix_tokens
            angles = angles_of(self.weights["rotary"], count, special, survivors)
            if angles is not None:
                q, k = rotate(q, angles), rotate(k, angles)
        metric, cached = k.mean(dim=1), 0
        if regcache is not None and index in regcache.config.prefix_blocks(self.spec.depth):
            prefix_k, prefix_v = self.prefix_kv(index, regcache.register[index])
            cached = regcache.config.prefix_count
            copies = (batch, -1, cached, -1)
            k = torch.cat([prefix_k.expand(copies), k], dim=2)
            v = torch.cat([prefix_v.expand(copies), v], dim=2)
        logits = numerics.matmul(f"{name}.qk", q * head_dim**-0.5, k.transpose(-2, -1))
        if self.merge is not None and self.merge.proportional:
            sizes = require_sizes(self.merge, index, survivors)
            if sizes is not None:
                # as published, the sizes are those of all tokens
                ahead = 0 if self.merge.compat else self.spec.num_prefix_tokens
                logits = logits + log_sizes(sizes, ahead, cached)
        mixed = numerics.matmul(f"{name}.pv", logits.softmax(dim=-1), v)
        mixed = mixed.transpose(1, 2).reshape(batch, count, width)
        if self.spec.attn_norm:
            mixed = self.plain_norm(mixed)
        return self._linear(f"{name}.out_proj", mixed, numerics), metric

    def _delete(
        self,
        index: int,
        tokens: Tensor,
        regcache: RegCache | None,
        place: str,
        survivors: Survivors,
        keys: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens, and `keys` of them, without those that are deleted here."""
        if regcache is None:
            return tokens, keys
        config = regcache.config
        if index != config.delete_block or not config.deletes or config.delete_at != place:
            return tokens, keys
        chosen, special = self._choose(tokens, config.delete_count), self.spec.num_prefix_tokens
        require_sizes(self.merge, index, survivors)
        survivors.take(chosen)
        left = None if keys is None else take_patches(keys, chosen, special)
        return take_patches(tokens, chosen, special), left

    def _choose(self, tokens: Tensor, count: int) -> Tensor:
        return kept_patches(tokens, count, self.spec.num_prefix_tokens)

    def _merge(
        self, index: int, tokens: Tensor, keys: Tensor | None, survivors: Survivors
    ) -> Tensor:
        if self.merge is None or not self.merge.counts[index]:
            return tokens
        count, special = self.merge.counts[index], self.spec.num_prefix_tokens
        require_sizes(self.merge, index, survivors)
        metric = tokens if keys is None or self.merge.metric == "residual" else keys
        if self.merge.compat:
            return merge_as_published(tokens, metric, count, special, survivors)
        pairs = self._pair(metric[:, special:], count)
        return merge_patches(tokens, pairs, special, survivors)

    def _pair(self, metric: Tensor, count: int) -> Pairs:
        return find_pairs(metric, count)
