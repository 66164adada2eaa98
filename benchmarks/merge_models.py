"""The files that `merge.py` times: an encoder at several schedules, peers, and merges alone."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from cpu_models import write_nncf
from onnx import TensorProto, helper

import regcache_export
from regcache_export.graph import build_model, serialize
from regcache_export.graph.tokens import ISLAND
from regcache_export.merge import MergeOptions, MergeSchedule
from regcache_export.plan import Plan
from regcache_export.targets import GraphOptions

SCHEDULES = {
    "none": "0",
    "r8": "8",
    "r8_falling": "(8,-1)",
    "r13": "13",
    "cut_3_69": "3:69",
    "r16_every_other": "16,0,16,0,16,0,16,0,16,0,16,0",
    "r26_every_other": "26,0,26,0,26,0,26,0,26,0,26,0",
}
"""By the name of the files; as `--merge` takes them. Every other block leaves as many tokens as
half as many in every block, with half of the merges."""

TARGETS = {"tuned": "onnxruntime", "portable": "onnx"}
CALIBRATION_IMAGES = 4
COUNTED = "r8"
"""Whose merges are also written alone, to see what they cost by themselves."""


def write_models(folder: Path, model: str, nncf: bool) -> None:
    """Write the ONNX files, and NNCF's, unless those of the same model and code are there."""
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / "models.json"
    identity = {"model": model, "schedules": SCHEDULES, "code": _code()}
    if not done.exists() or json.loads(done.read_text()) != identity:
        (folder / "nncf.xml").unlink(missing_ok=True)
        images, plans = _plans(model)
        for name, plan in plans.items():
            for form, target in TARGETS.items():
                graph = build_model(plan, options=GraphOptions(target=target))
                (folder / f"{form}_{name}.onnx").write_bytes(serialize(graph))
                if name == COUNTED:
                    alone = merges_alone(graph, plan)
                    (folder / f"{form}_merges.onnx").write_bytes(alone.SerializeToString())
        # the peers get the encoder as it is, without the fold that drops tokens
        plain = replace(plans["none"], linears={})
        encoder = build_model(plain, options=GraphOptions(without=("cls-only",)))
        (folder / "fp32.onnx").write_bytes(serialize(encoder))
        np.save(folder / "images.npy", images)
        done.write_text(json.dumps(identity))
    if nncf and not (folder / "nncf.xml").exists():
        write_nncf(folder / "fp32.onnx", folder / "nncf.xml", np.load(folder / "images.npy"))


def merges_alone(model: onnx.ModelProto, plan: Plan) -> onnx.ModelProto:
    """Nothing but the merges of a graph; tokens and keys of every block are inputs."""
    spec, nodes = plan.encoder, []
    for node in model.graph.node:
        if ISLAND in node.name or node.name.startswith("batch/"):
            nodes.append(node)
    made = {name for node in nodes for name in node.output}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    read = list(dict.fromkeys(name for node in nodes for name in node.input))
    values = {value.name: value for value in (*model.graph.value_info, *model.graph.input)}
    tokens = spec.num_tokens
    inputs = []
    for name in read:
        if name in made or name in constants:
            continue
        if name in values and name == model.graph.input[0].name:
            inputs.append(values[name])
            continue
        block = int(name.split(".")[1])
        assert plan.merge is not None
        count = tokens - sum(plan.merge.counts[:block])
        shape = ["batch", count, spec.width]
        inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    outputs = [onnx.ValueInfoProto(name=name) for name in made if name.endswith("merge/tokens/Add")]
    graph = helper.make_graph(
        nodes, "merges", inputs, outputs, [constants[name] for name in read if name in constants]
    )
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _plans(model: str) -> tuple[np.ndarray, dict[str, Plan]]:
    import torch

    from regcache_deploy.encoders.load import load_model
    from regcache_deploy.quantization.baselines import make_baseline
    from regcache_deploy.quantization.plan import make_plan

    loaded = load_model(model, "random:0")
    encoder = loaded.encoder
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(CALIBRATION_IMAGES, 3, *encoder.spec.image_size, generator=generator)
    plans: dict[str, Any] = {}
    with torch.no_grad():
        tokens = encoder.embed(images)
        for name, text in SCHEDULES.items():
            merge = MergeOptions(MergeSchedule.parse(text)).of(encoder.spec)
            calibration = make_baseline("naive").calibrate(encoder.merging(merge), tokens)
            plans[name] = make_plan(calibration, preprocess=loaded.preprocess)
    return images.numpy(), plans


def _code() -> str:
    """Hash of the exporter's source and of this file: other code, other graphs."""
    package = Path(regcache_export.__file__).parent
    digest = hashlib.sha256()
    for path in [*sorted(package.rglob("*.py")), Path(__file__)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()
