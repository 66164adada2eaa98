"""The form of a graph that TensorRT 10, 11 and TensorRT-RTX turn into INT8 kernels.

What is computed stays what the plan says. Four changes of form, each of which was seen to decide
a kernel in builds with TensorRT-RTX 1.7.1 (no GPU; `docs/tensorrt.md` has the table):

- Three products for queries, keys and values instead of one and a Split. The builder merges
  them into one INT8 GEMM again; the packed one it slices, dequantizes, and multiplies in float16.
- Q/DQ on both operands of both attention products, where INT8 attention fuses at all.
- Behind the attention of the last block, only the class token goes on. Its queries stay: with a
  single query row, INT8 attention does not fuse.
- A float16 body, because a strongly typed network runs float32 in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from ..errors import BundleError
from ..plan import Plan, TensorQuant
from ..targets import Body
from .editing import GraphEditor, new_node
from .float16 import to_float16
from .names import QKV

OPERANDS = ("left", "right")

OPSET = 20
"""The newest that TensorRT 10.0 documents, and JetPack 6 carries an early 10.x. Nothing of opset 21
is used."""


def to_tensorrt(model: onnx.ModelProto, plan: Plan, body: Body = "float16") -> onnx.ModelProto:
    """Bring a Q/DQ model of `plan` into TensorRT's form.

    Args:
        model: from `build_model`, standard operators, every zero point 0; not changed.
        plan: for its structure and its attention quantizers.
        body: `float32` keeps the float parts as they are: for tests against the simulation.

    Raises:
        BundleError: an attention quantizer does not fit INT8.
        ModelError: a constant does not fit float16.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    changed.opset_import[0].version = OPSET
    editor = GraphEditor(changed.graph)
    for index in range(plan.encoder.depth):
        split_qkv(editor, f"blocks.{index}.attn")
    for name, operands in plan.matmuls.items():
        quantize_product(editor, name, operands)
    if _only_class_token_goes_on(plan):
        _drop_patches_behind(editor, f"blocks.{plan.encoder.depth - 1}.attn/residual/Add")
    _cast_pixels_first(editor)
    editor.drop_unused_constants()
    if body == "float16":
        to_float16(changed)
    return changed


def split_qkv(editor: GraphEditor, name: str) -> None:
    """Three linears `NAME.q`, `NAME.k`, `NAME.v` in place of `NAME.qkv` and its Split.

    They share the quantized input; weights, scales and bias are columns of the packed ones.
    """
    packed = f"{name}.qkv"

    def rule(node: onnx.NodeProto) -> list[onnx.NodeProto]:
        if node.name in (f"{packed}/weight/DequantizeLinear", f"{packed}/Add", f"{name}/Split"):
            return []
        if node.name != f"{packed}/MatMul":
            return [node]
        return [
            new
            for position, role in enumerate(QKV)
            for new in _third(editor, name, role, position, node.input[0])
        ]

    editor.rewrite(rule)


def _third(
    editor: GraphEditor, name: str, role: str, position: int, x: str
) -> list[onnx.NodeProto]:
    packed, own, output = f"{name}.qkv", f"{name}.{role}", f"{name}/{role}"
    width = editor.value(f"{packed}.weight").shape[1] // 3
    columns = slice(position * width, (position + 1) * width)

    def part(suffix: str) -> str:
        value = editor.value(f"{packed}.{suffix}")
        if value.size > 1:
            value = value[..., columns]
        return editor.constant(f"{own}.{suffix}", value)

    nodes = []
    weight = part("weight")
    if f"{packed}.weight_scale" in editor.constants:
        parameters = [part("weight_scale"), part("weight_zero_point")]
        axis: dict[str, Any] = {"axis": 1} if editor.value(parameters[0]).ndim else {}
        nodes.append(new_node(f"{own}/weight/DequantizeLinear", [weight, *parameters], **axis))
        weight = nodes[-1].output[0]
    bias = ""
    if f"{packed}.bias" in editor.constants:
        bias = part("bias")
    if not bias or not editor.value(bias).any():
        return [*nodes, new_node(f"{own}/MatMul", [x, weight], output)]
    product = new_node(f"{own}/MatMul", [x, weight])
    return [*nodes, product, new_node(f"{own}/Add", [product.output[0], bias], output)]


def quantize_product(
    editor: GraphEditor, name: str, operands: tuple[TensorQuant, TensorQuant]
) -> None:
    """Q and DQ in front of both operands of `blocks.I.attn.qk` or `blocks.I.attn.pv`."""
    product = "/".join(name.rsplit(".", 1)) + "/MatMul"
    for operand, quant in zip(OPERANDS, operands, strict=True):
        if quant.scale.shape != (1,) or not quant.signed or quant.zero_point.any():
            raise BundleError(
                f"the {operand} operand of {name} needs one scale and zero point 0 for TensorRT"
            )

    def rule(node: onnx.NodeProto) -> list[onnx.NodeProto]:
        if node.name != product:
            return [node]
        nodes = []
        for position, (operand, quant) in enumerate(zip(OPERANDS, operands, strict=True)):
            own = f"{name}.{operand}"
            scale = np.asarray(quant.scale.reshape(()), np.float32)
            parameters = [
                editor.constant(f"{own}_scale", scale),
                editor.constant(f"{own}_zero_point", np.asarray(0, np.int8)),
            ]
            codes = new_node(f"{own}/QuantizeLinear", [node.input[position], *parameters])
            values = new_node(f"{own}/DequantizeLinear", [codes.output[0], *parameters])
            node.input[position] = values.output[0]
            nodes += [codes, values]
        return [*nodes, node]

    editor.rewrite(rule)


def _cast_pixels_first(editor: GraphEditor) -> None:
    """uint8 `[B, H, W, 3]` becomes float before it is transposed: TensorRT moves no uint8."""
    nodes = {node.name: node for node in editor.nodes}
    transpose, cast = nodes.get("pixels/Transpose"), nodes.get("pixels/Cast")
    if transpose is None or cast is None:
        return
    cast.input[0], transpose.input[0] = transpose.input[0], cast.input[0]
    moved, reader = cast.output[0], transpose.output[0]
    transpose.input[0] = moved
    for node in editor.nodes:
        if node.name not in (transpose.name, cast.name):
            inputs = [reader if name == moved else name for name in node.input]
            del node.input[:]
            node.input.extend(inputs)
    first, second = onnx.NodeProto(), onnx.NodeProto()
    first.CopyFrom(cast)
    second.CopyFrom(transpose)
    order = {transpose.name: first, cast.name: second}
    editor.rewrite(lambda node: [order.get(node.name, node)])


def _only_class_token_goes_on(plan: Plan) -> bool:
    choice, last = plan.regcache, plan.encoder.depth - 1
    deletes_later = bool(
        choice
        and choice.deletes
        and choice.delete_block == last
        and choice.delete_at == "mlp_input"
    )
    return plan.encoder.pool == "cls" and not deletes_later


def _drop_patches_behind(editor: GraphEditor, name: str) -> None:
    """Let token 0 alone through the sum `name`: `[B, N, D]` becomes `[B, 1, D]`."""
    bounds = [
        editor.constant(f"class_token/{end}", np.asarray([value], np.int64))
        for end, value in (("start", 0), ("end", 1), ("axis", 1))
    ]

    def rule(node: onnx.NodeProto) -> list[onnx.NodeProto]:
        if node.name != name:
            return [node]
        output = node.output[0]
        node.output[0] = f"{output}/tokens"
        return [node, new_node(f"{name}/Slice", [node.output[0], *bounds], output)]

    editor.rewrite(rule)
