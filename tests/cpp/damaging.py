"""How a bundle can be damaged."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from safetensors.numpy import load, save

HEAD = "text_features.safetensors"


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    change(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")


def manifest_of(data: bytes) -> Callable[[Path], Any]:
    return lambda bundle: (bundle / "manifest.json").write_bytes(data)


def changed(**entries: Any) -> Callable[[Path], None]:
    return lambda bundle: edit_manifest(bundle, lambda manifest: manifest.update(entries))


def replace_file(bundle: Path, name: str, data: bytes) -> None:
    """Exchange a file and its hash, as somebody with bad intent would."""
    (bundle / name).write_bytes(data)
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    edit_manifest(bundle, lambda manifest: manifest["files"].update({name: entry}))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_listed(bundle: Path, *names: str) -> None:
    """List files, and write them where they can be."""
    entry = {"sha256": hashlib.sha256(b"x").hexdigest(), "size": 1}
    entries = dict.fromkeys(names, entry)
    edit_manifest(bundle, lambda manifest: manifest["files"].update(entries))
    for name in names:
        if "/" not in name:
            (bundle / name).write_bytes(b"x")


def link(path: Path, keep: bool = True) -> None:
    target = path.with_name(".moved")
    path.rename(target)
    path.symlink_to(target)
    if not keep:
        target.unlink()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def entry(written: bytes) -> Callable[[Path], None]:
    """Give the manifest one more entry, as written."""

    def damage(bundle: Path) -> None:
        path = bundle / "manifest.json"
        text = path.read_bytes().rstrip()
        path.write_bytes(text[:-1] + b", " + written + b"}")

    return damage


def text_of(name: str, old: bytes, new: bytes) -> Callable[[Path], None]:
    """Exchange the first `old` in a file, and its hash."""

    def damage(bundle: Path) -> None:
        data = (bundle / name).read_bytes()
        assert old in data
        data = data.replace(old, new, 1)
        if name == "manifest.json":
            (bundle / name).write_bytes(data)
        else:
            replace_file(bundle, name, data)

    return damage


def size_of_minus_zero(bundle: Path) -> None:
    replace_file(bundle, "empty", b"")
    text_of("manifest.json", b'"size": 0}', b'"size": -0}')(bundle)


def append(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda bundle: replace_file(bundle, name, (bundle / name).read_bytes() + data)


def lists(name: str) -> Callable[[Path], None]:
    def damage(bundle: Path) -> None:
        entry = {"sha256": "0" * 64, "size": 1}
        edit_manifest(bundle, lambda manifest: manifest["files"].update({name: entry}))

    return damage


def header(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


def head_of(
    features: Any = None, dtype: Any = np.float32, **metadata: str
) -> Callable[[Path], None]:
    """A head with other features `[4, E]`, or with other metadata."""

    def damage(bundle: Path) -> None:
        data = (bundle / HEAD).read_bytes()
        known = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        values = load(data)["text_features"] if features is None else features
        tensors = {"text_features": np.ascontiguousarray(values).astype(dtype)}
        replace_file(bundle, HEAD, save(tensors, known | metadata))

    return damage


def head_written(
    change: Callable[[dict[str, Any]], Any] = lambda header: None,
    front: bytes = b"",
    behind: bytes = b"",
    written: Callable[[bytes], bytes] = lambda text: text,
) -> Callable[[Path], None]:
    """A head with another header, or with bytes around its parts."""

    def damage(bundle: Path) -> None:
        data = (bundle / HEAD).read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        known = json.loads(data[8:end])
        change(known)
        text = header(written(json.dumps(known).encode()))
        replace_file(bundle, HEAD, text + front + data[end:] + behind)

    return damage


def more_metadata(value: Any) -> Callable[[Path], None]:
    return head_written(lambda header: header["__metadata__"].update(more=value))


def preprocessing(**entries: Any) -> Callable[[Path], None]:
    def damage(bundle: Path) -> None:
        config = json.loads((bundle / "preprocess_cfg.json").read_bytes()) | entries
        replace_file(bundle, "preprocess_cfg.json", json.dumps(config).encode())

    return damage


def graph_of(end: str, **entries: Any) -> Callable[[Path], None]:
    return lambda bundle: edit_manifest(bundle, lambda m: m["graph"][end].update(entries))


def probes(*entries: Any) -> Callable[[Path], None]:
    return lambda bundle: edit_manifest(bundle, lambda m: m["graph"].update(probes=list(entries)))


def encoder_of(batch: Any, dim: int) -> Callable[[Path], None]:
    """Another model: the mean of each image's pixels, `dim` times, for 32 x 24 pixels."""

    def damage(bundle: Path) -> None:
        nodes = [
            helper.make_node("Flatten", ["image"], ["flat"], axis=1),
            helper.make_node("ReduceMean", ["flat", "axes"], ["mean"], keepdims=1),
            helper.make_node("Expand", ["mean", "shape"], ["image_features"]),
        ]
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, 32, 24])],
            [helper.make_tensor_value_info("image_features", TensorProto.FLOAT, [batch, dim])],
            [
                helper.make_tensor("axes", TensorProto.INT64, [1], [1]),
                helper.make_tensor("shape", TensorProto.INT64, [2], [1, dim]),
            ],
        )
        opsets = [helper.make_opsetid("", 20)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        replace_file(bundle, "model.onnx", model.SerializeToString())

    return damage


def edited(bundle: Path, change: Callable[[onnx.ModelProto], Any]) -> None:
    model = onnx.load(bundle / "model.onnx")
    change(model)
    replace_file(bundle, "model.onnx", model.SerializeToString())


def features_twice(bundle: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node("Identity", ["image_features"], ["more"]))
        model.graph.output.add().CopyFrom(model.graph.output[0])
        model.graph.output[-1].name = "more"

    edited(bundle, change)


def batch_of(size: int) -> Callable[[Path], None]:
    def change(model: onnx.ModelProto) -> None:
        for end in (model.graph.input[0], model.graph.output[0]):
            end.type.tensor_type.shape.dim[0].dim_value = size

    return lambda bundle: edited(bundle, change)


def weights_beside(bundle: Path) -> None:
    """Weights in a hidden file, which no manifest lists."""
    path = bundle / "model.onnx"
    onnx.save(
        onnx.load(path), path, save_as_external_data=True, location=".weights", size_threshold=0
    )
    replace_file(bundle, "model.onnx", path.read_bytes())


def weights_elsewhere(bundle: Path) -> None:
    """Weights in a file that is named by its whole path."""
    weights = bundle.parent / "weights"
    model = onnx.load(bundle / "model.onnx")
    largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weights.write_bytes(largest.raw_data)
    largest.ClearField("raw_data")
    largest.data_location = TensorProto.EXTERNAL
    largest.external_data.add(key="location", value=str(weights))
    replace_file(bundle, "model.onnx", model.SerializeToString())


def with_text(bundle: Path) -> None:
    """Give it a text tower as far as the bundle's readers look: three files, listed and hashed."""
    (bundle / "text").mkdir()
    for name in TEXT:
        replace_file(bundle, name, name.encode())


def text_damaged(damage: Callable[[Path], Any]) -> Callable[[Path], None]:
    def both(bundle: Path) -> None:
        with_text(bundle)
        damage(bundle)

    return both


def unlist(name: str) -> Callable[[Path], None]:
    return lambda bundle: edit_manifest(bundle, lambda manifest: manifest["files"].pop(name))


TEXT = ("text/model.onnx", "text/tokenizer.json", "text/text.json")


def text_as_a_file(bundle: Path) -> None:
    make_listed(bundle, "text", *TEXT)
