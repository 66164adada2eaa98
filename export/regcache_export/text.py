"""The ONNX graph of a text tower: `input_ids [b, L]` -> `text_embeds [b, E]`.

A canonical pre-norm transformer, the text side of CLIP, SigLIP and their kin. Weights that belong
to a `TextSpec` (float32; `V` vocabulary, `C` context length, `D` width, `M` MLP width):

| name | shape |
|---|---|
| `token_embed.weight`, `pos_embed` | `[V, D]`, `[C, D]` |
| `blocks.I.norm1.{weight,bias}`, `blocks.I.norm2.{weight,bias}` | `[D]` |
| `blocks.I.attn.qkv.{weight,bias}`, `blocks.I.attn.out_proj.{weight,bias}` | `[3D, D]`, `[D, D]` |
| `blocks.I.mlp.fc1.{weight,bias}`, `blocks.I.mlp.fc2.{weight,bias}` | `[M, D]`, `[D, M]` |
| `norm.{weight,bias}` | `[D]` |
| `proj.{weight,bias}` (if `projection`) | `[E, D]`, `[E]` |

A layer scale is folded into the projections, and a missing bias is zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from regcache_engines.text_config import INPUT, OUTPUT

from .describe import tool_version
from .graph.builder import Array, GraphBuilder
from .graph.encoder import IR_VERSION, OPSET
from .graph.float_layers import gelu, gemm, layer_norm
from .graph.shapes import add_shapes
from .spec import Activation

MASKED = -1e9
"""Added to logits of later tokens; their weights are zeros in float32."""


@dataclass(frozen=True)
class TextSpec:
    """Structure of a text tower.

    Attributes:
        vocab_size: rows of the token embedding.
        context_length: tokens that the position embedding has places for.
        output_dim: length E of the embedding.
        causal: a token sees those before it; else all of them, padding included.
        pooling: as in `TextConfig`.
        eos_id: the end token, for pooling `eos`.
        projection: a linear layer behind the pooled token.
    """

    vocab_size: int
    context_length: int
    width: int
    depth: int
    heads: int
    mlp_width: int
    output_dim: int
    activation: Activation = "gelu"
    norm_eps: float = 1e-5
    causal: bool = True
    pooling: str = "argmax"
    eos_id: int | None = None
    projection: bool = True

    @property
    def any_length(self) -> bool:
        """Whether what stands behind a text's end changes nothing, so that rows may be short."""
        return self.causal and self.pooling in ("argmax", "eos", "first")

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight by name, with its shape."""
        width, hidden = self.width, self.mlp_width
        shapes: dict[str, tuple[int, ...]] = {
            "token_embed.weight": (self.vocab_size, width),
            "pos_embed": (self.context_length, width),
        }
        linears = {
            "attn.qkv": (3 * width, width),
            "attn.out_proj": (width, width),
            "mlp.fc1": (hidden, width),
            "mlp.fc2": (width, hidden),
        }
        for index in range(self.depth):
            for norm in ("norm1", "norm2"):
                shapes |= _affine(f"blocks.{index}.{norm}", (width,))
            for linear, shape in linears.items():
                shapes |= _affine(f"blocks.{index}.{linear}", shape)
        shapes |= _affine("norm", (width,))
        if self.projection:
            shapes |= _affine("proj", (self.output_dim, width))
        return shapes


def build_text_model(spec: TextSpec, weights: Mapping[str, Array]) -> onnx.ModelProto:
    """Write the graph in float32.

    Input `input_ids`: int64 `[batch, length]`; `length` is free up to the context length where
    `spec.any_length`, else the context length. Output `text_embeds`: float32 `[batch, E]`, not
    L2-normalized.
    """
    builder = GraphBuilder(INPUT)
    x = _embed(builder, spec, weights)
    mask = _mask(builder, spec) if spec.causal else None
    for index in range(spec.depth):
        x = _block(builder, spec, weights, index, x, mask)
    pooled = _pool(builder, spec, x)
    end = _norm(builder, spec, weights, "norm", pooled)
    if spec.projection:
        end = gemm(builder, "proj", end, weights["proj.weight"], weights["proj.bias"])
    builder.node("output/Identity", [end], outputs=[OUTPUT])
    length: int | str = "length" if spec.any_length else spec.context_length
    ids = helper.make_tensor_value_info(INPUT, TensorProto.INT64, ["batch", length])
    embeds = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", spec.output_dim])
    model = helper.make_model(
        builder.graph("text_tower", [ids], [embeds]),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="regcache-deploy",
        producer_version=tool_version(),
    )
    add_shapes(model)
    return model


def _affine(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _embed(builder: GraphBuilder, spec: TextSpec, weights: Mapping[str, Array]) -> str:
    table = builder.constant("token_embed.weight", weights["token_embed.weight"])
    tokens = builder.node("token_embed/Gather", [table, INPUT], {"axis": 0})
    positions = builder.constant("pos_embed", weights["pos_embed"])
    if spec.any_length:
        inputs = [positions, builder.ints("slice/0", [0]), _length(builder)]
        positions = builder.node("pos_embed/Slice", [*inputs, builder.ints("axis/0", [0])])
    return builder.node("pos_embed/Add", [tokens, positions])


def _length(builder: GraphBuilder) -> str:
    return builder.node("length/Shape", [INPUT], {"start": 1, "end": 2})


def _mask(builder: GraphBuilder, spec: TextSpec) -> str:
    """What joins the logits `[b, H, L, L]`."""
    size = spec.context_length
    whole = np.triu(np.full((1, 1, size, size), MASKED, np.float32), 1)
    mask = builder.constant("causal_mask", whole)
    if not spec.any_length:
        return mask
    zeros, axes = builder.ints("slice/00", [0, 0]), builder.ints("axes/23", [2, 3])
    ends = builder.node("causal_mask/ends/Concat", ["length/Shape", "length/Shape"], {"axis": 0})
    return builder.node("causal_mask/Slice", [mask, zeros, ends, axes])


def _norm(
    builder: GraphBuilder, spec: TextSpec, weights: Mapping[str, Array], name: str, x: str
) -> str:
    parameters = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return layer_norm(builder, name, x, *parameters, spec.norm_eps)


def _linear(builder: GraphBuilder, weights: Mapping[str, Array], name: str, x: str) -> str:
    weight = builder.constant(f"{name}.weight", weights[f"{name}.weight"].T)
    product = builder.node(f"{name}/MatMul", [x, weight])
    bias = builder.constant(f"{name}.bias", weights[f"{name}.bias"])
    return builder.node(f"{name}/Add", [product, bias])


def _block(
    builder: GraphBuilder,
    spec: TextSpec,
    weights: Mapping[str, Array],
    index: int,
    x: str,
    mask: str | None,
) -> str:
    name = f"blocks.{index}"
    normed = _norm(builder, spec, weights, f"{name}.norm1", x)
    mixed = _attention(builder, spec, weights, f"{name}.attn", normed, mask)
    update = _linear(builder, weights, f"{name}.attn.out_proj", mixed)
    x = builder.node(f"{name}.attn/residual/Add", [x, update])
    normed = _norm(builder, spec, weights, f"{name}.norm2", x)
    hidden = _linear(builder, weights, f"{name}.mlp.fc1", normed)
    hidden = gelu(builder, spec.activation, f"{name}.mlp.act", hidden)
    update = _linear(builder, weights, f"{name}.mlp.fc2", hidden)
    return builder.node(f"{name}.mlp/residual/Add", [x, update])


def _attention(
    builder: GraphBuilder,
    spec: TextSpec,
    weights: Mapping[str, Array],
    name: str,
    x: str,
    mask: str | None,
) -> str:
    size = spec.width // spec.heads
    qkv = _linear(builder, weights, f"{name}.qkv", x)
    parts = [f"{name}/{part}" for part in ("q", "k", "v")]
    sizes = builder.ints("shape/qkv", [spec.width] * 3)
    builder.node(f"{name}/Split", [qkv, sizes], {"axis": 2}, parts)
    heads = builder.ints("shape/heads", [0, 0, spec.heads, size])
    q, k, v = (
        builder.node(
            f"{part}/Transpose", [builder.node(f"{part}/Reshape", [part, heads])], {"perm": order}
        )
        for part, order in zip(parts, ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True)
    )
    scale = builder.constant("attention_scale", np.asarray(size**-0.5, np.float32))
    q = builder.node(f"{name}/q/Mul", [q, scale])
    logits = builder.node(f"{name}/qk/MatMul", [q, k])
    if mask is not None:
        logits = builder.node(f"{name}/mask/Add", [logits, mask])
    shares = builder.node(f"{name}/Softmax", [logits], {"axis": -1})
    mixed = builder.node(f"{name}/pv/MatMul", [shares, v])
    mixed = builder.node(f"{name}/pv/Transpose", [mixed], {"perm": [0, 2, 1, 3]})
    return builder.node(f"{name}/pv/Reshape", [mixed, builder.ints("shape/merged", [0, 0, -1])])


def _pool(builder: GraphBuilder, spec: TextSpec, x: str) -> str:
    """The token `[b, D]` that becomes the embedding."""
    if spec.pooling in ("first", "last"):
        place = builder.constant("pool/place", np.asarray(-(spec.pooling == "last"), np.int64))
        return builder.node("pool/Gather", [x, place], {"axis": 1})
    # ONNX Runtime's ArgMax takes no int64
    if spec.pooling == "eos":
        end = builder.constant("pool/eos", np.asarray(spec.eos_id, np.int64))
        marks = builder.node("pool/Equal", [INPUT, end])
    else:
        marks = INPUT
    marks = builder.node("pool/Cast", [marks], {"to": TensorProto.INT32})
    place = builder.node("pool/ArgMax", [marks], {"axis": 1, "keepdims": 1})
    return builder.node("pool/GatherND", [x, place], {"batch_dims": 1})
