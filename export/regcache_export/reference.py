"""A second implementation of the graph's arithmetic: numpy in float64, from the stored constants.

It reads the initializers by name and the structure from the encoder's description, never the
nodes, so that a wrong wire, attribute or kernel shows as a difference. No torch, no runtime.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .compare import Forced, Simulated, leading
from .errors import BundleError
from .graph.names import QUICK_GELU_FACTOR
from .merge import Merge
from .onnx_proto import ModelProto, to_array
from .reference_activation import activation
from .reference_columns import with_packed_columns
from .reference_merge import merge_patches, similarity_of
from .reference_quantizers import quantized, symmetric, weight_values
from .reference_stem import run_stem
from .regcache_config import RegCacheConfig
from .spec import EncoderSpec
from .survivors import Left, Pairs
from .targets import GraphOptions, find_target

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]

WHITE = 255.0


def initializers(model: ModelProto) -> dict[str, Array]:
    """Constants of a model by name."""
    return {tensor.name: to_array(tensor) for tensor in model.graph.initializer}


class Reference:
    """Simulator of one model's blocks (see `compare.Simulator`), and its pooling.

    Args:
        constants: the model's initializers.
        spec: the encoder.
        regcache: the choice that is baked in, or None.
        options: how the graph was written.
        offsets: linear -> what is subtracted from stored codes to give levels.
        merge: how tokens are merged, or None.
    """

    def __init__(
        self,
        constants: Mapping[str, Array],
        spec: EncoderSpec,
        regcache: RegCacheConfig | None,
        options: GraphOptions,
        offsets: Mapping[str, int],
        merge: Merge | None = None,
    ) -> None:
        self.merge = merge
        self.constants, self.spec, self.regcache = (
            with_packed_columns(constants, spec),
            spec,
            regcache,
        )
        self.options, self.offsets = options, offsets
        target = find_target(options.target)
        half = target.form == "tensorrt" and options.body == "float16"
        self.gate = float((np.float16 if half else np.float32)(QUICK_GELU_FACTOR))
        left_out = (*options.without, *target.skips)
        cls_only = spec.pool == "cls" and "cls-only" not in left_out
        self._cls_only_block = spec.depth - 1 if cls_only else None
        folded = "attention-scale" not in options.without
        factor = spec.head_dim**-0.5
        self._logit_scale = 1.0 if folded else float(np.float16(factor) if half else factor)

    def block(
        self, index: int, tokens: Array, forced: Forced | None = None, left: Left | None = None
    ) -> Simulated:
        """One block on `tokens [B, N, D]`; without `forced` it goes on with its own codes.

        `left` says which patches are among the tokens; None where all are there.
        """
        run = _Run(self, forced, left or Left(self.spec.num_patches))
        name = f"blocks.{index}"
        x = run.delete(index, tokens.astype(np.float64), "block_input")
        mixed = self._attention(run, index, self.norm(f"{name}.norm1", x))
        if self.spec.attn_norm:
            mixed = self._plain_norm(mixed)
        if index == self._cls_only_block:
            x = x[:, :1]
        x = x + self._layer_scale(f"{name}.ls1", run.linear(f"{name}.attn.out_proj", mixed))
        if index != self._cls_only_block:
            x = run.delete(index, x, "mlp_input")
            x = run.merge(index, x)
        normed = self.norm(f"{name}.norm2_pre", x) if self.spec.norm2_pre else x
        hidden = run.linear(f"{name}.mlp.fc1", self.norm(f"{name}.norm2", normed))
        hidden = activation(self.spec.activation, hidden, self.gate)
        if self.spec.mlp_norm:
            hidden = self._plain_norm(hidden)
        output = x + self._layer_scale(f"{name}.ls2", run.linear(f"{name}.mlp.fc2", hidden))
        return Simulated(
            run.steps, run.codes, run.positions, output, run.norms, run.pairs, run.similarity
        )

    def constant(self, name: str) -> Float64:
        if name not in self.constants:
            raise BundleError(f"the graph has no constant {name}; it is not one of ours")
        return self.constants[name].astype(np.float64)

    def norm(self, name: str, x: Float64) -> Float64:
        scaled = self._plain_norm(x)
        result: Float64 = scaled * self.constant(f"{name}.weight") + self.constant(f"{name}.bias")
        return result

    def _plain_norm(self, x: Float64) -> Float64:
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = (centred**2).mean(axis=-1, keepdims=True)
        result: Float64 = centred / np.sqrt(variance + self.spec.norm_eps)
        return result

    def embed(self, image: Array) -> Float64:
        """The graph's input -> tokens `[B, N, D]` at the input of block 0."""
        spec = self.spec
        if self.options.pixels == "nhwc":
            image = image.transpose(0, 3, 1, 2)
        if spec.stem:
            image = image - self.constants.get("pixels.mean", 0.0)
            maps = run_stem(spec.stem, self.constant, image.astype(np.float64))
            tokens = maps.reshape(len(image), spec.width, -1).transpose(0, 2, 1)
        else:
            tokens = self._patches(image)
        tokens = tokens + self.constant("pos_embed")
        if spec.num_prefix_tokens:
            special = self.constant("prefix_tokens")
            special = np.broadcast_to(special, (len(image), *special.shape[1:]))
            tokens = np.concatenate([special, tokens], axis=1)
        return self.norm("norm_pre", tokens) if spec.norm_pre else tokens

    def _patches(self, image: Array) -> Float64:
        spec = self.spec
        (rows, columns), (ph, pw) = spec.grid, spec.patch_size
        image = image[:, :, : rows * ph, : columns * pw]
        patches = image.astype(np.float64).reshape(len(image), 3, rows, ph, columns, pw)
        flat = patches.transpose(0, 2, 4, 1, 3, 5).reshape(len(image), rows * columns, -1)
        weight = self.constant("patch_embed.weight").reshape(spec.width, -1)
        tokens: Float64 = flat @ weight.T + self.constant("patch_embed.bias")
        return tokens

    def _layer_scale(self, name: str, x: Float64) -> Float64:
        return x * self.constant(name) if name in self.constants else x

    def _attention(self, run: _Run, index: int, x: Float64) -> Float64:
        spec, name = self.spec, f"blocks.{index}.attn"
        batch, count, width = x.shape
        qkv = run.linear(f"{name}.qkv", x)
        q, k, v = (
            part.reshape(batch, count, spec.heads, spec.head_dim).transpose(0, 2, 1, 3)
            for part in np.split(qkv, 3, axis=-1)
        )
        if spec.rotary:
            q, k = (self._rotate(part, run.left.kept) for part in (q, k))
        run.keys = k.mean(axis=1)
        if index == self._cls_only_block:
            q = q[:, :, :1]
        if self.regcache and index in self.regcache.prefix_blocks(spec.depth):
            k, v = (
                np.concatenate([self._prefix(f"{name}/prefix_{role}", batch), part], axis=2)
                for role, part in (("k", k), ("v", v))
            )
        logits = run.product(f"{name}.qk", q * self._logit_scale, k.transpose(0, 1, 3, 2))
        if self.merge is not None and self.merge.proportional and run.left.sizes is not None:
            ahead = k.shape[2] - run.left.patches  # cached keys and leading tokens
            logits = logits + np.pad(np.log(run.left.sizes), ((0, 0), (ahead, 0)))[:, None, None]
        logits = np.exp(logits - logits.max(axis=-1, keepdims=True))
        mixed = run.product(f"{name}.pv", logits / logits.sum(axis=-1, keepdims=True), v)
        merged: Float64 = mixed.transpose(0, 2, 1, 3).reshape(batch, -1, width)
        return merged

    def _rotate(self, x: Float64, kept: Array | None) -> Float64:
        table = self.constant("rotary")[:, 0]
        if kept is not None:
            special = self.spec.num_prefix_tokens
            first = np.broadcast_to(np.arange(special), (len(kept), special))
            table = table[np.concatenate([first, kept + special], axis=1)][:, None]
        cos, sin = np.split(table, 2, axis=-1)
        left, right = np.split(x, 2, axis=-1)
        return np.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)

    def _prefix(self, name: str, batch: int) -> Float64:
        stored = self.constant(name)
        if stored.ndim == 3:  # [1, tau, D], as MultiHeadAttention wants it
            stored = stored.reshape(1, -1, self.spec.heads, self.spec.head_dim)
            stored = stored.transpose(0, 2, 1, 3)
        return np.broadcast_to(stored, (batch, *stored.shape[1:]))


class _Run:
    """One block on its way through: what is forced, and what was found."""

    def __init__(self, reference: Reference, forced: Forced | None, left: Left) -> None:
        self.reference, self.forced, self.left = reference, forced, left
        self.steps: dict[str, Array] = {}
        self.codes: dict[str, Array] = {}
        self.positions: Array | None = None
        self.norms: Array | None = None
        self.keys: Float64 = np.zeros(())
        self.pairs: Pairs | None = None
        self.similarity: Array | None = None

    def linear(self, name: str, x: Float64) -> Float64:
        known = self.reference.constants
        grid = quantized(known, name, x, self.reference.offsets.get(name, 0), self.record)
        product = grid @ weight_values(known, name)
        if f"{name}.float_channels" in known:
            few = x[..., known[f"{name}.float_channels"]]
            product = product + few @ known[f"{name}.float_weight"].astype(np.float64)
        bias = known.get(f"{name}.bias")
        return product if bias is None else product + bias.astype(np.float64).reshape(-1)

    def product(self, name: str, a: Float64, b: Float64) -> Float64:
        """`a @ b` of an attention product, its operands quantized where the graph does that."""
        left, right = (self._operand(name, *side) for side in (("left", a), ("right", b)))
        result: Float64 = left @ right
        return result

    def _operand(self, name: str, side: str, x: Float64) -> Float64:
        known = self.reference.constants
        if f"{name}.{side}_scale" in known:
            return symmetric(known[f"{name}.{side}_scale"], f"{name}.{side}", x, self.record)
        block, role = name.rsplit(".", 1)
        published = f"{block}/{role}/{side}"
        offset = self.reference.offsets.get(published, 0)
        return quantized(known, published, x, offset, self.record)

    def record(self, name: str, steps: Float64, codes: Float64) -> Float64:
        """Note levels that were found; returns the graph's, as far as it has them."""
        self.steps[name], self.codes[name] = steps, codes
        if self.forced is None:
            return codes
        graph = self.forced.codes[name]
        codes = codes.copy()
        codes[leading(graph.shape)] = graph
        return codes

    def delete(self, index: int, tokens: Float64, place: str) -> Float64:
        choice, special = self.reference.regcache, self.reference.spec.num_prefix_tokens
        if not choice or not choice.deletes or choice.delete_block != index:
            return tokens
        if choice.delete_at != place:
            return tokens
        patches = tokens[:, special:]
        self.norms = np.abs(patches).max(axis=-1)
        order = np.argsort(self.norms, axis=1, kind="stable")
        self.positions = order[:, : patches.shape[1] - choice.delete_count]
        kept = self.positions
        if self.forced is not None and self.forced.positions is not None:
            kept = self.forced.positions
        self.left = self.left.deleted(kept)
        if place == "mlp_input":
            self.keys = _kept_rows(self.keys, kept, special)
        return _kept_rows(tokens, kept, special)

    def merge(self, index: int, tokens: Float64) -> Float64:
        merge, special = self.reference.merge, self.reference.spec.num_prefix_tokens
        if merge is None or not merge.counts[index]:
            return tokens
        metric = self.keys if merge.metric == "keys" else tokens
        self.similarity = similarity_of(metric[:, special:])
        order = np.argsort(-self.similarity.max(axis=2), axis=1, kind="stable")
        go = order[:, : merge.counts[index], None]
        found = np.take_along_axis(self.similarity, go, axis=1).argmax(axis=2)
        self.pairs = Pairs(order, found)
        forced = self.forced.pairs if self.forced else None
        pairs = forced or self.pairs
        merged = merge_patches(tokens[:, special:], self.left.sizes, pairs)
        self.left = self.left.merged(pairs)
        return np.concatenate([tokens[:, :special], merged], axis=1)


def _kept_rows(tokens: Float64, kept: Array, special: int) -> Float64:
    survivors = np.take_along_axis(tokens[:, special:], kept[..., None], axis=1)
    return np.concatenate([tokens[:, :special], survivors], axis=1)
