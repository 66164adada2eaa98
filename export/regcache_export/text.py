"""The ONNX graph of a text tower: `input_ids [b, L]` -> `text_embeds [b, E]`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper

from regcache_engines.text_config import INPUT, OUTPUT

from .describe import tool_version
from .graph.builder import Array, GraphBuilder
from .graph.encoder import IR_VERSION, OPSET
from .graph.float_layers import gelu, gemm, layer_norm
from .graph.shapes import add_shapes
from .text_spec import TextSpec

MASKED = -1e9
"""Added to logits of later tokens; their weights are zeros in float32."""


def build_text_model(spec: TextSpec, weights: Mapping[str, Array]) -> onnx.ModelProto:
    """Write the graph in float32.

    Input `input_ids`: int64 `[batch, length]`; `length` is free up to the context length where
    `spec.any_length`, else the context length. Output `text_embeds`: float32 `[batch, E]`, not
    L2-normalized.
    """
    builder = GraphBuilder(INPUT)
    x = _embed(builder, spec, weights)
    if spec.post_norm:
        x = _norm(builder, spec, weights, "embed_norm", x)
    mask = _mask(builder, spec) if spec.causal else None
    if spec.pad_id is not None:
        mask = _pad_mask(builder, spec.pad_id)
    for index in range(spec.depth):
        x = _block(builder, spec, weights, index, x, mask)
    pooled = _pool(builder, spec, x)
    end = pooled if spec.post_norm else _norm(builder, spec, weights, "norm", pooled)
    if spec.projection_hidden:
        parameters = weights["proj.hidden.weight"], weights["proj.hidden.bias"]
        end = gelu(builder, "gelu", "proj.act", gemm(builder, "proj.hidden", end, *parameters))
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


def _own(builder: GraphBuilder, pad_id: int) -> str:
    """1 for a text's own tokens, 0 for filling: float32 `[b, L]`."""
    pad = builder.constant("pad_mask/id", np.asarray(pad_id, np.int64))
    filling = builder.node("pad_mask/Equal", [INPUT, pad])
    own = builder.node("pad_mask/Not", [filling])
    return builder.node("pad_mask/Cast", [own], {"to": TensorProto.FLOAT})


def _pad_mask(builder: GraphBuilder, pad_id: int) -> str:
    """What joins the logits, `[b, 1, 1, L]`."""
    one = builder.constant("pad_mask/one", np.asarray(1, np.float32))
    filling = builder.node("pad_mask/Sub", [one, _own(builder, pad_id)])
    masked = builder.constant("pad_mask/masked", np.asarray(MASKED, np.float32))
    added = builder.node("pad_mask/Mul", [filling, masked])
    return builder.node("pad_mask/Unsqueeze", [added, builder.ints("axes/12", [1, 2])])


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

    def norm(which: str, x: str, here: bool) -> str:
        return _norm(builder, spec, weights, f"{name}.{which}", x) if here else x

    normed = norm("norm1", x, not spec.post_norm)
    mixed = _attention(builder, spec, weights, f"{name}.attn", normed, mask)
    update = _linear(builder, weights, f"{name}.attn.out_proj", mixed)
    x = norm("norm1", builder.node(f"{name}.attn/residual/Add", [x, update]), spec.post_norm)
    normed = norm("norm2", x, not spec.post_norm)
    hidden = _linear(builder, weights, f"{name}.mlp.fc1", normed)
    hidden = gelu(builder, spec.activation, f"{name}.mlp.act", hidden)
    update = _linear(builder, weights, f"{name}.mlp.fc2", hidden)
    return norm("norm2", builder.node(f"{name}.mlp/residual/Add", [x, update]), spec.post_norm)


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
    if spec.pooling == "mean":
        return _mean(builder, x)
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


def _mean(builder: GraphBuilder, x: str) -> str:
    """The mean of a text's own tokens, `[b, D]`; the mask of the logits is there already."""
    axis = builder.ints("axes/1", [1])
    own = builder.node("pool/Unsqueeze", ["pad_mask/Cast", builder.ints("axes/2", [2])])
    kept = builder.node("pool/Mul", [x, own])
    total = builder.node("pool/ReduceSum", [kept, axis], {"keepdims": 0})
    count = builder.node("pool/count/ReduceSum", ["pad_mask/Cast", axis], {"keepdims": 1})
    return builder.node("pool/Div", [total, count])
