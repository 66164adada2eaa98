"""Layer tables: from the log of TensorRT-RTX 1.7.1 (recorded), and from JSON (by documentation)."""

from __future__ import annotations

import json

import pytest

from regcache_engines.errors import EngineError
from regcache_engines.tensorrt.layers import (
    Layer,
    count_kinds,
    layers_from_inspector,
    layers_from_log,
    missing_promises,
    product_kinds,
)

TENSOR = "{{ Name: {name}, Dimensions: [-1,768], Strides: [768,1], Datatype: {type}, Format: x }}"


def line(
    name: str,
    kind: str,
    inputs: list[str],
    constants: list[str],
    outputs: list[str],
    onnx: list[str],
) -> str:
    """A line as TensorRT-RTX 1.7.1 writes it."""

    def tensors(types: list[str]) -> str:
        if not types:
            return "[]"
        return "[ " + ", ".join(TENSOR.format(name="t", type=t) for t in types) + "]"

    metadata = "".join(f"[ONNX Layer: {node}]" for node in onnx)
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: {tensors(inputs)}, Constants: "
        f"{tensors(constants)}, Outputs: {tensors(outputs)}, TacticName: {name}_0x1, StreamId: 0, "
        f"Metadata: {metadata}"
    )


LOG = "\n".join(
    [
        "Layers:",
        line("entry^bb^signal^1_myl0_1", "signal", [], [], [], []),
        line(
            "blocks.0.attn.q/MatMul_U72+blocks.0.attn.k/MatMul_myl0_6",
            "gemm",
            ["Int8"],
            ["Int8", "Float", "Float"],
            ["Half"],
            ["blocks.0.attn.q/MatMul", "blocks.0.attn.k/MatMul"],
        ),
        line(
            "_gemm_mha_v2_myl0_15",
            "kgen",
            ["Int8", "Int8", "Int8"],
            [],
            ["Int8"],
            ["blocks.0.attn/qk/MatMul", "blocks.0.attn/pv/MatMul"],
        ),
        line(
            "_gemm_mha_v2_myl0_16", "kgen", ["Half"] * 3, [], ["Int8"], ["blocks.1.attn/qk/MatMul"]
        ),
        # the packed QKV: int8 codes, cast to half in front of a half GEMM
        line(
            "__myl_CastMulFc_myl0_10",
            "runtime_fusion",
            ["Int8", "Half"],
            [],
            ["Half"],
            ["blocks.0.attn.qkv/MatMul"],
        ),
        line(
            "__myl_FcAdd_myl0_19",
            "runtime_fusion",
            ["Half"],
            ["Half", "Half"],
            ["Half"],
            ["blocks.1.mlp.fc1/MatMul"],
        ),
        line(
            "blocks.2.attn/qk/MatMul_U3",
            "gemm",
            ["Int8", "Int8"],
            ["Float", "Float"],
            ["Half"],
            ["blocks.2.attn/qk/MatMul"],
        ),
        # the weight comes in as an input; the constants are the two factors of the result
        line(
            "pool/values/MatMul_U156",
            "gemm",
            ["Half", "Half"],
            ["Float", "Float"],
            ["Half"],
            ["pool/values/MatMul"],
        ),
        line(
            "__myl_MulAdd_myl0_7", "kgen", ["Half"], ["Half"], ["Int8"], ["blocks.0.attn.q/MatMul"]
        ),
        line(
            "patch_embed/Conv_U0", "correlation", ["Half"], ["Half"], ["Half"], ["patch_embed/Conv"]
        ),
    ]
)


def test_log() -> None:
    layers = layers_from_log(["Reading Calibration", LOG, "done"])
    assert count_kinds(layers) == {
        "conv": 1,
        "half_gemm": 3,
        "half_mha": 1,
        "int8_bmm": 1,
        "int8_gemm": 1,
        "int8_mha": 1,
        "other": 1,
    }
    assert layers[1].onnx == ("blocks.0.attn.q/MatMul", "blocks.0.attn.k/MatMul")
    assert not layers_from_log(["nothing here", ""])


def earlier(node: str, types: list[str], factors_at: int | None) -> str:
    """A GEMM as TensorRT 10.0 to 10.9 write it: no constants, or all of them among the inputs."""
    names = [f"tensor{i}" for i in range(len(types))]
    if factors_at is not None:
        names[factors_at : factors_at + 2] = [f"__mye5{node}_alpha", f"__mye6{node}_beta"]
    inputs = ", ".join(
        f"{{ Name: {name}, Dimensions: [1,768], Format/Datatype: {kind} }}"
        for name, kind in zip(names, types, strict=True)
    )
    return (
        f"Name: {node}_myl0_7, LayerType: gemm, Inputs: [ {inputs}], Outputs: [ {{ Name: y, "
        "Dimensions: [1,768], Format/Datatype: Half }], TacticName: sm80_xmma_gemm, StreamId: 0, "
        f"Metadata: [ONNX Layer: {node}]"
    )


@pytest.mark.parametrize(
    ("types", "factors_at", "node", "kind"),
    [
        (["Int8", "Int8", "Float", "Float", "Half"], 2, "blocks.0.mlp.fc1/MatMul", "int8_gemm"),
        (["Half", "Half", "Float", "Float", "Half"], 2, "blocks.0.mlp.fc1/MatMul", "half_gemm"),
        (["Float", "Float", "Float", "Float"], 2, "blocks.0.mlp.fc1/MatMul", "float_gemm"),
        (["Int8", "Int8", "Float", "Float"], 2, "blocks.0.attn/qk/MatMul", "int8_bmm"),
        (["Int8"], None, "blocks.0.mlp.fc1/MatMul", "int8_gemm"),
        (["Row major Int8 format"], None, "blocks.0.mlp.fc1/MatMul", "int8_gemm"),
        (["Row major linear FP16 format"], None, "blocks.0.mlp.fc1/MatMul", "half_gemm"),
    ],
)
def test_logs_of_tensorrt_10(
    types: list[str], factors_at: int | None, node: str, kind: str
) -> None:
    (layer,) = layers_from_log([earlier(node, types, factors_at)])
    assert layer.kind == kind


def test_promises() -> None:
    products = product_kinds(layers_from_log([LOG]))
    assert products["blocks.0.attn.q/MatMul"] == ["int8_gemm", "other"]
    assert "patch_embed/Conv" not in products
    kept = {"blocks.0.attn.q/MatMul": "int8_gemm", "blocks.0.attn/pv/MatMul": "int8_mha"}
    assert not missing_promises(products, kept)
    broken = {
        "blocks.0.attn.qkv/MatMul": "int8_gemm",
        "blocks.1.attn/qk/MatMul": "int8_mha",
        "blocks.2.attn/qk/MatMul": "int8_mha",
        "blocks.9.mlp.fc1/MatMul": "int8_gemm",
    }
    assert missing_promises(products, kept | broken) == {
        "blocks.0.attn.qkv/MatMul": "half_gemm",
        "blocks.1.attn/qk/MatMul": "half_mha",
        "blocks.2.attn/qk/MatMul": "int8_bmm",
        "blocks.9.mlp.fc1/MatMul": "no matrix product",
    }


def entry(new: bool, types: list[str]) -> list[dict[str, str]]:
    if new:
        return [{"Name": "t", "Datatype": kind, "Format": "Row major"} for kind in types]
    return [{"Name": "t", "Format/Datatype": f"Row major {kind} format"} for kind in types]


@pytest.mark.parametrize("new", [False, True], ids=["10.x", "11.x"])
def test_inspector(new: bool) -> None:
    document = {
        "Layers": [
            {
                "Name": "blocks.0.mlp.fc1/MatMul",
                "LayerType": "gemm",
                "Inputs": entry(new, ["Int8"]),
                "Constants": entry(new, ["Int8", "Float"]),
                "Outputs": entry(new, ["FP16" if not new else "Half"]),
                "Metadata": "[ONNX Layer: blocks.0.mlp.fc1/MatMul]",
            },
            {
                "Name": "_gemm_mha_v2_myl0_1",
                "LayerType": "kgen",
                "Inputs": entry(new, ["Int8"] * 3),
                "Outputs": entry(new, ["Int8"]),
                "TacticName": "x",
            },
        ],
        **({"I/O Tensors": []} if new else {"Bindings": ["image"]}),
    }
    layers = layers_from_inspector(json.dumps(document))
    assert [layer.kind for layer in layers] == ["int8_gemm", "int8_mha"]
    assert layers[0].outputs == ("half",)
    assert layers[0].onnx == ("blocks.0.mlp.fc1/MatMul",)


def test_unreadable_inspector_answers() -> None:
    for text in ("", "{}", "[]", '{"Layers": ["a name"]}'):
        with pytest.raises(EngineError):
            layers_from_inspector(text)


def test_unknown_types_stay_visible() -> None:
    layer = Layer("x/MatMul", "gemm", ("fp4",), ("fp4",), ("half",))
    assert layer.kind == "unknown_gemm"
