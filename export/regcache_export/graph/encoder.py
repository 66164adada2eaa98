"""A plan's ONNX model: patch embedding, blocks, pooling."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from ..describe import metadata, tool_version
from ..errors import BundleError
from ..plan import Plan
from .attention import attention
from .builder import Array, GraphBuilder
from .check import check_exportable
from .deletion import delete_sinks
from .linear import linear

OPSET = 21
"""Newest opset of onnx 1.16; every operator used here runs from it in ONNX Runtime and TensorRT."""

IR_VERSION = 10
"""The IR version that came with opset 21; onnx would write its own newest, which older runtimes
refuse."""

INPUT_NAME = "image"
OUTPUT_NAME = "image_features"

MAX_PROTOBUF_BYTES = 2**31 - 1
QUICK_GELU_FACTOR = 1.702


def build_model(plan: Plan, plan_sha256: str | None = None) -> onnx.ModelProto:
    """Write the ONNX model of a plan.

    Input `image`: float32 `[batch, 3, H, W]`, normalized with the plan's mean and std. Output
    `image_features`: float32 `[batch, E]`, not L2-normalized. Layers in `plan.linears` carry
    QuantizeLinear/DequantizeLinear pairs; everything else is float32. Only standard operators.

    Args:
        plan: what to bake.
        plan_sha256: hash of the plan's files, repeated in the metadata.

    Raises:
        BundleError: the plan is incomplete, or quantized in a way that this graph cannot hold.
        ConfigError: a RegCache number is out of range.
        ModelError: a weight is NaN or infinite, or the structure is unsupported.
    """
    check_exportable(plan)
    builder = GraphBuilder(INPUT_NAME)
    tokens = _embed(builder, plan)
    for index in range(plan.encoder.depth):
        tokens = _block(builder, plan, index, tokens)
    pooled = _pool(builder, plan, tokens)
    # the last computing node differs from plan to plan; runtimes drop an Identity
    builder.node("output/Identity", [pooled], outputs=[OUTPUT_NAME])
    height, width = plan.encoder.image_size
    graph = builder.graph(
        "regcache",
        [helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, ["batch", 3, height, width])],
        [
            helper.make_tensor_value_info(
                OUTPUT_NAME, TensorProto.FLOAT, ["batch", plan.encoder.output_dim]
            )
        ],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="regcache-deploy",
        producer_version=tool_version(),
    )
    helper.set_model_props(model, metadata(plan, plan_sha256))
    return model


def serialize(model: onnx.ModelProto) -> bytes:
    """Bytes of a model, weights inside; the same model always gives the same bytes.

    Raises:
        BundleError: larger than the 2 GiB that one protobuf file can hold.
    """
    if model.ByteSize() > MAX_PROTOBUF_BYTES:
        raise BundleError(
            f"the model needs {model.ByteSize() / 2**30:.1f} GiB, and one ONNX file holds 2 GiB; "
            "quantize its linears to 8 bits, or take a smaller encoder"
        )
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _embed(builder: GraphBuilder, plan: Plan) -> str:
    """Image to tokens `[B, N, D]`."""
    spec, w = plan.encoder, plan.weights
    special_count = spec.num_prefix_tokens
    patches = builder.node(
        "patch_embed/Conv",
        [
            INPUT_NAME,
            _float(builder, "patch_embed.weight", w["patch_embed.weight"]),
            _float(builder, "patch_embed.bias", w["patch_embed.bias"]),
        ],
        {"kernel_shape": list(spec.patch_size), "strides": list(spec.patch_size)},
    )
    flat = builder.ints("shape/flat_patches", [0, 0, spec.num_patches])
    tokens = builder.node("patch_embed/Reshape", [patches, flat])
    tokens = builder.node("patch_embed/Transpose", [tokens], {"perm": [0, 2, 1]})
    position = _float(builder, "pos_embed", w["pos_embed"][special_count:][None])
    tokens = builder.node("pos_embed/Add", [tokens, position])
    if special_count:
        # the special tokens' position embedding is added here, once, instead of for every image
        value = w["prefix_tokens"].astype(np.float32) + w["pos_embed"][:special_count]
        special = _float(builder, "prefix_tokens", value[None])
        special = builder.node("prefix_tokens/Expand", [special, builder.batch_shape(3)])
        tokens = builder.node("prefix_tokens/Concat", [special, tokens], {"axis": 1})
    return _norm(builder, plan, "norm_pre", tokens) if spec.norm_pre else tokens


def _block(builder: GraphBuilder, plan: Plan, index: int, tokens: str) -> str:
    name = f"blocks.{index}"
    tokens = _delete(builder, plan, index, tokens, "block_input")
    mixed = attention(builder, plan, index, _norm(builder, plan, f"{name}.norm1", tokens))
    update = _scaled_linear(builder, plan, f"{name}.attn.out_proj", mixed, f"{name}.ls1")
    tokens = builder.node(f"{name}.attn/residual/Add", [tokens, update])
    tokens = _delete(builder, plan, index, tokens, "mlp_input")
    normed = _norm(builder, plan, f"{name}.norm2", tokens)
    fc1 = f"{name}.mlp.fc1"
    hidden = linear(
        builder,
        fc1,
        normed,
        plan.weights[f"{fc1}.weight"],
        plan.weights[f"{fc1}.bias"],
        plan.linears.get(fc1),
    )
    hidden = _activation(builder, plan, f"{name}.mlp.act", hidden)
    update = _scaled_linear(builder, plan, f"{name}.mlp.fc2", hidden, f"{name}.ls2")
    return builder.node(f"{name}.mlp/residual/Add", [tokens, update])


def _delete(builder: GraphBuilder, plan: Plan, index: int, tokens: str, place: str) -> str:
    choice = plan.regcache
    here = choice and choice.deletes and choice.delete_block == index and choice.delete_at == place
    return delete_sinks(builder, plan, f"blocks.{index}.delete", tokens) if here else tokens


def _scaled_linear(builder: GraphBuilder, plan: Plan, name: str, x: str, scale_name: str) -> str:
    """A linear followed by its layer scale, if the encoder has one."""
    weight, bias = plan.weights[f"{name}.weight"], plan.weights[f"{name}.bias"]
    quant = plan.linears.get(name)
    if not plan.encoder.layer_scale:
        return linear(builder, name, x, weight, bias, quant)
    scale = plan.weights[scale_name]
    if quant is None:
        return linear(builder, name, x, weight * scale[:, None], bias * scale)
    # folding into the weight's scale would be free, but layer scales may be negative or zero,
    # which no runtime takes as a quantization scale
    y = linear(builder, name, x, weight, bias, quant)
    return builder.node(f"{scale_name}/Mul", [y, _float(builder, scale_name, scale[None, None])])


def _activation(builder: GraphBuilder, plan: Plan, name: str, x: str) -> str:
    kind = plan.encoder.activation
    if kind == "quick_gelu":
        factor = builder.constant("quick_gelu_factor", np.asarray(QUICK_GELU_FACTOR, np.float32))
        gate = builder.node(f"{name}/gate/Mul", [x, factor])
        gate = builder.node(f"{name}/Sigmoid", [gate])
        return builder.node(f"{name}/Mul", [x, gate])
    approximate = "tanh" if kind == "gelu_tanh" else "none"
    return builder.node(f"{name}/Gelu", [x], {"approximate": approximate})


def _pool(builder: GraphBuilder, plan: Plan, tokens: str) -> str:
    """Tokens to embeddings `[B, E]`."""
    spec = plan.encoder
    if spec.pool == "cls":
        # LayerNorm works token by token: only the pooled token needs it
        token = builder.constant("cls_position", np.asarray(0, np.int64))
        pooled = builder.node("pool/Gather", [tokens, token], {"axis": 1})
    else:
        if spec.final_norm == "before_pool":
            tokens = _norm(builder, plan, "norm", tokens)
        if spec.num_prefix_tokens:
            bounds = [
                builder.ints(f"pool/{end}", [position])
                for end, position in (
                    ("first_patch", spec.num_prefix_tokens),
                    ("end", spec.num_tokens),
                    ("axis", 1),
                )
            ]
            tokens = builder.node("pool/Slice", [tokens, *bounds])
        pooled = builder.node(
            "pool/ReduceMean", [tokens, builder.ints("axes/tokens", [1])], {"keepdims": 0}
        )
    if spec.final_norm == "after_pool" or (spec.final_norm != "none" and spec.pool == "cls"):
        pooled = _norm(builder, plan, "norm", pooled)
    if not spec.projection:
        return pooled
    weight = _float(builder, "proj.weight", plan.weights["proj.weight"].T)
    inputs = [pooled, weight]
    if plan.weights["proj.bias"].any():
        inputs.append(_float(builder, "proj.bias", plan.weights["proj.bias"]))
    return builder.node("proj/Gemm", inputs)


def _norm(builder: GraphBuilder, plan: Plan, name: str, x: str) -> str:
    parameters = [
        _float(builder, f"{name}.{part}", plan.weights[f"{name}.{part}"])
        for part in ("weight", "bias")
    ]
    return builder.node(
        f"{name}/LayerNormalization",
        [x, *parameters],
        {"axis": -1, "epsilon": plan.encoder.norm_eps},
    )


def _float(builder: GraphBuilder, name: str, value: Array) -> str:
    return builder.constant(name, value.astype(np.float32))
