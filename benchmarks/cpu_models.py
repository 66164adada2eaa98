"""The files that `cpu_forms.py` times: our targets, the peers, and the floor. Random weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import regcache_export

MODEL = "ViT-B-16"
REGCACHE = {"block": 6, "prefix": 4, "delete": 5}
CALIBRATION_IMAGES = 4

OURS = ("portable", "tuned")
GRAPHS = ("plain", "regcache")
WIDE = "tuned_wide"
"""The tuned target with one packed product for queries, keys and values."""

FLOOR_IMAGES = (1, 2)
"""Batches of the files with the linears alone; larger ones run as pieces of two."""


def write_models(folder: Path, model: str = MODEL) -> None:
    """Write the ONNX files, unless those of the same model and code are there."""
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / "models.json"
    identity = {"model": model, "regcache": REGCACHE, "code": _exporter_sha256()}
    if done.exists() and json.loads(done.read_text()) == identity:
        return
    (folder / "nncf.xml").unlink(missing_ok=True)
    images, plans = _plans(model)
    from regcache_export.graph import build_model, serialize
    from regcache_export.targets import TARGETS, GraphOptions

    for graph, plan in plans.items():
        for name, target in zip(OURS, ("onnx", "onnxruntime"), strict=True):
            written = build_model(plan, options=GraphOptions(target=target))
            (folder / f"{name}_{graph}.onnx").write_bytes(serialize(written))
    TARGETS[WIDE] = replace(TARGETS["onnxruntime"], name=WIDE, narrow_products=False)
    wide = build_model(plans["regcache"], options=GraphOptions(target=WIDE))
    del TARGETS[WIDE]
    (folder / f"{WIDE}_regcache.onnx").write_bytes(serialize(wide))
    # the peers get the encoder as it is: no RegCache, no fold that drops tokens
    plain = replace(plans["plain"], linears={})
    encoder = build_model(plain, options=GraphOptions(without=("cls-only",)))
    (folder / "fp32.onnx").write_bytes(serialize(encoder))
    quantize_static(folder / "fp32.onnx", folder / "quantize_static.onnx", images)
    for batch in FLOOR_IMAGES:
        path = folder / f"floor_b{batch}.onnx"
        path.write_bytes(floor(plans["plain"].encoder, batch).SerializeToString())
    np.save(folder / "images.npy", images)
    done.write_text(json.dumps(identity))


def _exporter_sha256() -> str:
    """Hash of the exporter's source and of this file: other code, other graphs."""
    package = Path(regcache_export.__file__).parent
    digest = hashlib.sha256()
    for path in [*sorted(package.rglob("*.py")), Path(__file__)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _plans(model: str) -> tuple[np.ndarray, dict[str, Any]]:
    import torch

    from regcache_deploy.encoders.load import load_model
    from regcache_deploy.encoders.regcache import RegCache, RegCacheConfig
    from regcache_deploy.quantization.baselines import make_baseline
    from regcache_deploy.quantization.plan import make_plan

    loaded = load_model(model, "random:0")
    encoder = loaded.encoder
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(CALIBRATION_IMAGES, 3, *encoder.spec.image_size, generator=generator)
    block = REGCACHE["block"]
    config = RegCacheConfig(block, REGCACHE["prefix"], block, REGCACHE["delete"])
    plans = {}
    with torch.no_grad():
        tokens = encoder.embed(images)
        register: dict[int, Any] = {}

        def observe(index: int, x: Any) -> None:
            register[index] = encoder.norm(f"blocks.{index}.norm1", x[0, 5])

        encoder.run_blocks(tokens, observe=observe)
        for graph in GRAPHS:
            choice = config if graph == "regcache" else None
            regcache = RegCache(config, register) if choice else None
            calibration = make_baseline("naive").calibrate(encoder, tokens, regcache=regcache)
            plans[graph] = make_plan(
                calibration, regcache_config=choice, preprocess=loaded.preprocess
            )
    return images.numpy(), plans


def quantize_static(source: Path, target: Path, images: np.ndarray) -> None:
    """ONNX Runtime's own static quantization: QDQ, u8s8, per channel, linears only."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter([{"image": image[None]} for image in images])

        def get_next(self) -> dict[str, Any] | None:
            return next(self.rest, None)

    constants = {t.name for t in onnx.load(str(source)).graph.initializer}
    linears = [
        node.name
        for node in onnx.load(str(source)).graph.node
        if node.op_type == "MatMul" and node.input[1] in constants
    ]
    quantize(
        str(source),
        str(target),
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul"],
        nodes_to_quantize=linears,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def write_nncf(source: Path, target: Path, images: np.ndarray) -> None:
    """NNCF's post-training quantization with the transformer preset, as an OpenVINO model."""
    import nncf
    import openvino

    model = nncf.quantize(
        openvino.Core().read_model(str(source)),
        nncf.Dataset([image[None] for image in images]),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(images),
    )
    openvino.save_model(model, str(target), compress_to_fp16=False)


def floor(spec: Any, batch: int) -> onnx.ModelProto:
    """The encoder's linears alone, as u8s8 MatMulInteger on the same sizes."""
    rows = batch * spec.num_tokens
    generator = np.random.default_rng(0)
    sizes = [(spec.width, 3 * spec.width), (spec.width, spec.width)]
    sizes += [(spec.width, spec.mlp_width), (spec.mlp_width, spec.width)]
    nodes, constants, inputs, outputs = [], [], [], []
    for width in (spec.width, spec.mlp_width):
        inputs.append(helper.make_tensor_value_info(f"x{width}", TensorProto.UINT8, [rows, width]))
    zero = numpy_helper.from_array(np.asarray(128, np.uint8), "zero")
    constants.append(zero)
    for block in range(spec.depth):
        for role, (source, target) in enumerate(sizes):
            name = f"y{block}_{role}"
            weight = generator.integers(-127, 128, (source, target)).astype(np.int8)
            constants.append(numpy_helper.from_array(weight, f"w{block}_{role}"))
            nodes.append(
                helper.make_node(
                    "MatMulInteger", [f"x{source}", f"w{block}_{role}", "zero"], [name]
                )
            )
            outputs.append(helper.make_tensor_value_info(name, TensorProto.INT32, [rows, target]))
    graph = helper.make_graph(nodes, "floor", inputs, outputs, initializer=constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
