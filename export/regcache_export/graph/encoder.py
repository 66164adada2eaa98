"""A plan's ONNX model: patch embedding, blocks, pooling."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, helper

from ..checks import require_tensorrt_rules
from ..describe import metadata, tool_version
from ..errors import BundleError
from ..passes import FoldState, export_folds, run_folds
from ..plan import Plan
from ..targets import GraphOptions, find_target
from .attention import MICROSOFT, attention, first_token
from .builder import GraphBuilder
from .check import check_exportable, check_target
from .deletion import delete_alike, delete_sinks
from .float_layers import activation, float_constant, norm, plain_norm
from .linear import linear
from .merging import log_sizes, merge_tokens
from .names import INPUT_NAME, OUTPUT_NAME
from .pooling import pool
from .rotary import all_angles, angles_of_survivors
from .shapes import add_shapes
from .split_qkv import split_qkv
from .stem import stem
from .tensorrt import to_tensorrt
from .tokens import Tokens

OPSET = 21
"""Newest opset of onnx 1.16; every operator used here runs from it in ONNX Runtime and TensorRT."""

IR_VERSION = 10
"""The IR version that came with opset 21; onnx would write its own newest, which older runtimes
refuse."""

MAX_PROTOBUF_BYTES = 2**31 - 1


def build_model(
    plan: Plan, plan_sha256: str | None = None, options: GraphOptions | None = None
) -> onnx.ModelProto:
    """Write the ONNX model of a plan.

    Input `image`: float32 `[batch, 3, H, W]`, normalized with the plan's mean and std; or, with
    `options.pixels`, uint8 `[batch, 3, H, W]` or `[batch, H, W, 3]`. Output `image_features`:
    float32 `[batch, E]`, not L2-normalized. Layers in `plan.linears` are integer products in the
    target's form; everything else is float32.

    Args:
        plan: what to bake.
        plan_sha256: hash of the plan's files, repeated in the metadata.
        options: target, folds, input and batch.

    Raises:
        BundleError: the plan is incomplete, or quantized in a way that this graph cannot hold.
        ConfigError: a RegCache number is out of range, an unknown target or fold, or quantizers
            as published for a target without them.
        ModelError: a weight is NaN or infinite, or the structure is unsupported.
    """
    options = options or GraphOptions()
    check_exportable(plan)
    target = find_target(options.target)
    check_target(plan, target)
    state = run_folds(FoldState.of_plan(plan), export_folds(options))
    builder = GraphBuilder(INPUT_NAME, target)
    tokens = Tokens(_embed(builder, state), state.encoder.num_patches)
    for index in range(state.encoder.depth):
        tokens = _block(builder, state, index, tokens)
    pooled = pool(builder, state, tokens.value, tokens.sizes)
    # the last computing node differs from plan to plan; runtimes drop an Identity
    builder.node("output/Identity", [pooled], outputs=[OUTPUT_NAME])
    batch: str | int = options.batch or "batch"
    pixel_type = TensorProto.UINT8 if options.pixels else TensorProto.FLOAT
    graph = builder.graph(
        "regcache",
        [helper.make_tensor_value_info(INPUT_NAME, pixel_type, input_shape(plan, options))],
        [
            helper.make_tensor_value_info(
                OUTPUT_NAME, TensorProto.FLOAT, [batch, plan.encoder.output_dim]
            )
        ],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    if not target.portable:
        opsets.append(helper.make_opsetid(MICROSOFT, 1))
    model = helper.make_model(
        graph,
        opset_imports=opsets,
        ir_version=IR_VERSION,
        producer_name="regcache-deploy",
        producer_version=tool_version(),
    )
    helper.set_model_props(model, metadata(plan, plan_sha256, options))
    finished = in_target_form(model, plan, options)
    if target.form == "as_written":  # TensorRT's form is rewritten once more: types would be stale
        add_shapes(finished)
    return finished


def in_target_form(model: onnx.ModelProto, plan: Plan, options: GraphOptions) -> onnx.ModelProto:
    """The finished graph rewritten for its target, where the target wants that.

    Raises:
        BundleError: the result breaks a rule of the target.
    """
    target = find_target(options.target)
    if target.narrow_products:
        return split_qkv(model, plan.encoder)
    if target.form == "as_written":
        return model
    changed = to_tensorrt(model, plan, options.body)
    require_tensorrt_rules(changed)
    return changed


def input_shape(plan: Plan, options: GraphOptions) -> list[str | int]:
    """Shape of the graph's input."""
    batch: str | int = options.batch or "batch"
    height, width = plan.encoder.image_size
    if options.pixels == "nhwc":
        return [batch, height, width, 3]
    return [batch, 3, height, width]


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


def _embed(builder: GraphBuilder, state: FoldState) -> str:
    """Image to tokens `[B, N, D]`."""
    spec, w = state.encoder, state.weights
    special_count = spec.num_prefix_tokens
    image = INPUT_NAME
    if state.pixels == "nhwc":
        image = builder.node("pixels/Transpose", [image], {"perm": [0, 3, 1, 2]})
    if state.pixels:
        image = builder.node("pixels/Cast", [image], {"to": TensorProto.FLOAT})
    if "pixels.mean" in w:
        mean = float_constant(builder, "pixels.mean", w["pixels.mean"])
        image = builder.node("pixels/Sub", [image, mean])
    patches = (
        stem(builder, state, image) if spec.stem else _patch_convolution(builder, state, image)
    )
    flat = builder.ints("shape/flat_patches", [0, 0, spec.num_patches])
    tokens = builder.node("patch_embed/Reshape", [patches, flat])
    tokens = builder.node("patch_embed/Transpose", [tokens], {"perm": [0, 2, 1]})
    position = float_constant(builder, "pos_embed", w["pos_embed"][special_count:][None])
    tokens = builder.node("pos_embed/Add", [tokens, position])
    if special_count:
        # the special tokens' position embedding is added here, once, instead of for every image
        value = w["prefix_tokens"].astype(np.float32) + w["pos_embed"][:special_count]
        special = float_constant(builder, "prefix_tokens", value[None])
        special = builder.node("prefix_tokens/Expand", [special, builder.batch_shape(3)])
        tokens = builder.node("prefix_tokens/Concat", [special, tokens], {"axis": 1})
    return norm(builder, state, "norm_pre", tokens) if spec.norm_pre else tokens


def _patch_convolution(builder: GraphBuilder, state: FoldState, image: str) -> str:
    spec, w = state.encoder, state.weights
    inputs = [
        image,
        float_constant(builder, "patch_embed.weight", w["patch_embed.weight"]),
        float_constant(builder, "patch_embed.bias", w["patch_embed.bias"]),
    ]
    window = {"kernel_shape": list(spec.patch_size), "strides": list(spec.patch_size)}
    return builder.node("patch_embed/Conv", inputs, window)


def _block(builder: GraphBuilder, state: FoldState, index: int, tokens: Tokens) -> Tokens:
    name, special = f"blocks.{index}", state.encoder.num_prefix_tokens
    cls_only = state.last_block_cls_only and index == state.encoder.depth - 1
    tokens, _ = _delete(builder, state, index, tokens, "block_input")
    if tokens.angles is None and state.encoder.rotary:
        tokens = replace(tokens, angles=all_angles(builder, state))
    normed = norm(builder, state, f"{name}.norm1", tokens.value)
    queries = 1 if cls_only else special + tokens.patches
    counted = log_sizes(builder, state, index, tokens, queries)
    mixed, keys = attention(builder, state, index, normed, cls_only, tokens.angles, counted)
    if state.encoder.attn_norm:
        mixed = plain_norm(builder, state, f"{name}.attn.norm", mixed, state.encoder.width)
    x = tokens.value
    if cls_only:
        x = first_token(builder, f"{name}.attn/residual", x)
    update = _scaled_linear(builder, state, f"{name}.attn.out_proj", mixed, f"{name}.ls1")
    x = builder.node(f"{name}.attn/residual/Add", [x, update])
    tokens = replace(tokens, value=x)
    if not cls_only:
        tokens, keys = _delete(builder, state, index, tokens, "mlp_input", keys)
        tokens = merge_tokens(builder, state, index, tokens, keys)
    normed = tokens.value
    if state.encoder.norm2_pre:
        normed = norm(builder, state, f"{name}.norm2_pre", normed)
    normed = norm(builder, state, f"{name}.norm2", normed)
    hidden = linear(builder, state, f"{name}.mlp.fc1", normed)
    hidden = activation(builder, state, f"{name}.mlp.act", hidden)
    if state.encoder.mlp_norm:
        width = state.encoder.mlp_width
        hidden = plain_norm(builder, state, f"{name}.mlp.norm", hidden, width)
    update = _scaled_linear(builder, state, f"{name}.mlp.fc2", hidden, f"{name}.ls2")
    return replace(tokens, value=builder.node(f"{name}.mlp/residual/Add", [tokens.value, update]))


def _delete(
    builder: GraphBuilder, state: FoldState, index: int, tokens: Tokens, place: str, keys: str = ""
) -> tuple[Tokens, str]:
    """Tokens, and their keys where a merge asks for them, without those that are deleted here."""
    choice, name = state.regcache, f"blocks.{index}.delete"
    here = choice and choice.deletes and choice.delete_block == index and choice.delete_at == place
    if not choice or not here:
        return tokens, keys
    before = tokens.patches
    value = delete_sinks(builder, state, name, tokens.value, before)
    if keys and state.merge and state.merge.by_keys(index):
        keys = delete_alike(builder, state, name, "keys", keys, before)
    sizes = tokens.sizes
    if sizes is not None:
        # the sizes are float32 in any body
        sizes = delete_alike(builder, state, name, "merge/sizes", sizes, before)
    left = replace(tokens, value=value, patches=before - choice.delete_count, sizes=sizes)
    # behind the attention of the last block, nobody asks for angles
    if state.encoder.rotary and (place == "block_input" or index < state.encoder.depth - 1):
        places = f"{name}/positions"
        if tokens.places is not None:
            inputs = [tokens.places, places]
            places = builder.node(f"{name}/GatherElements", inputs, {"axis": 1})
        angles = angles_of_survivors(builder, state, f"{name}/rotary", places)
        left = replace(left, places=places, angles=angles)
    return left, keys


def _scaled_linear(
    builder: GraphBuilder, state: FoldState, name: str, x: str, scale_name: str
) -> str:
    """A linear followed by its layer scale, where that was not folded away."""
    y = linear(builder, state, name, x)
    if not state.encoder.layer_scale:
        return y
    scale = float_constant(builder, scale_name, state.weights[scale_name][None, None])
    return builder.node(f"{scale_name}/Mul", [y, scale])
