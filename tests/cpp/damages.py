"""What can be wrong with a bundle, and the status that each must be refused with."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from safetensors.numpy import load, save


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


PROBE = {"name": "p", "output": "p", "low": 0, "high": 255}
DEEP = b'{"a": ' * 300_000 + b"0" + b"}" * 300_000
HEAD = "text_features.safetensors"
DAMAGES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "no folder": ("BUNDLE_NOT_FOUND", shutil.rmtree),
    "no manifest": ("BUNDLE_NOT_FOUND", lambda b: (b / "manifest.json").unlink()),
    "truncated model": ("BUNDLE_DAMAGED", lambda b: truncate(b / "model.onnx")),
    "changed model": ("BUNDLE_CHECKSUM", lambda b: flip(b / "model.onnx")),
    "changed head": ("BUNDLE_CHECKSUM", lambda b: flip(b / HEAD)),
    "missing model": ("BUNDLE_DAMAGED", lambda b: (b / "model.onnx").unlink()),
    "linked model": ("BUNDLE_DAMAGED", lambda b: link(b / "model.onnx")),
    "folder as model": (
        "BUNDLE_DAMAGED",
        lambda b: make_folder(b / "model.onnx"),
    ),
    "unlisted file": ("BUNDLE_DAMAGED", lambda b: (b / "extra.so").write_bytes(b"x")),
    "newer schema": (
        "BUNDLE_SCHEMA_UNKNOWN",
        changed(schema=2),
    ),
    "schema as text": ("BUNDLE_SCHEMA_UNKNOWN", changed(schema="1")),
    "no JSON": ("BUNDLE_DAMAGED", manifest_of(b"{")),
    "empty manifest": ("BUNDLE_DAMAGED", manifest_of(b"")),
    "deep manifest": (
        "BUNDLE_DAMAGED",
        lambda b: (b / "manifest.json").write_bytes(b"[" * 500_000),
    ),
    "bad UTF-8": ("BUNDLE_DAMAGED", manifest_of(b'{"\xff": 1}')),
    "list of files": ("BUNDLE_DAMAGED", changed(files=[])),
    "no graph": ("BUNDLE_DAMAGED", lambda b: edit_manifest(b, lambda m: m.pop("graph"))),
    "traversal": ("BUNDLE_UNSAFE_NAME", lists("../../etc/passwd")),
    "absolute": ("BUNDLE_UNSAFE_NAME", lists("/etc/passwd")),
    "backslash": ("BUNDLE_UNSAFE_NAME", lists("..\\model.onnx")),
    "parent": ("BUNDLE_UNSAFE_NAME", lists("..")),
    "empty name": ("BUNDLE_UNSAFE_NAME", lists("")),
    "zero byte": ("BUNDLE_UNSAFE_NAME", lists("model.onnx\0")),
    "itself": ("BUNDLE_UNSAFE_NAME", lists("manifest.json")),
    "long name": ("BUNDLE_DAMAGED", lists("a" * 300)),
    "no ONNX": ("RUNTIME_FAILED", lambda b: replace_file(b, "model.onnx", b"not a model")),
    "empty model": ("RUNTIME_FAILED", lambda b: replace_file(b, "model.onnx", b"")),
    "other size": (
        "RUNTIME_FAILED",
        lambda b: replace_file(b, "preprocess_cfg.json", b'{"size": 64}'),
    ),
    "bad preprocessing": (
        "BUNDLE_DAMAGED",
        lambda b: replace_file(b, "preprocess_cfg.json", b'{"size": 1e99}'),
    ),
    "unknown preprocessing": (
        "BUNDLE_DAMAGED",
        lambda b: replace_file(b, "preprocess_cfg.json", b'{"gamma": 2}'),
    ),
    "no bytes of preprocessing": (
        "BUNDLE_DAMAGED",
        lambda b: replace_file(b, "preprocess_cfg.json", b""),
    ),
    "no bytes of head": ("BUNDLE_DAMAGED", lambda b: replace_file(b, HEAD, b"")),
    "truncated head": ("BUNDLE_DAMAGED", lambda b: truncate(b / HEAD)),
    "linked head": ("BUNDLE_DAMAGED", lambda b: link(b / HEAD)),
    "dangling link": ("BUNDLE_DAMAGED", lambda b: link(b / HEAD, keep=False)),
    "pipe as model": ("BUNDLE_DAMAGED", lambda b: pipe(b / "model.onnx")),
    "truncated manifest": ("BUNDLE_DAMAGED", lambda b: truncate(b / "manifest.json")),
    "endless manifest": ("BUNDLE_DAMAGED", lambda b: os.truncate(b / "manifest.json", 1 << 30)),
    "deep object": ("BUNDLE_DAMAGED", manifest_of(b'{"schema": 1, "files": ' + DEEP + b"}")),
    "unlisted name without UTF-8": (
        "BUNDLE_DAMAGED",
        lambda b: Path(os.fsdecode(bytes(b) + b"/\xff\xfe")).write_bytes(b"x"),
    ),
    "two schemas": ("BUNDLE_DAMAGED", entry(b'"schema": 1')),
    "two lists": ("BUNDLE_DAMAGED", entry(b'"files": {}')),
    "two keys deep inside": ("BUNDLE_DAMAGED", entry(b'"x": [{"a": 1, "b": {}, "a": 1}]')),
    "two sizes": ("BUNDLE_DAMAGED", text_of("preprocess_cfg.json", b"{", b'{"size": 1, ')),
    "empty file of size -0": ("BUNDLE_DAMAGED", size_of_minus_zero),
    "fill of -0": (
        "BUNDLE_DAMAGED",
        text_of("preprocess_cfg.json", b"{", b'{"fill_color": -0, '),
    ),
    "number of many digits": ("BUNDLE_DAMAGED", entry(b'"x": ' + b"1" * 401)),
    "lists in each other": ("BUNDLE_DAMAGED", entry(b'"x": ' + b"[" * 100 + b"]" * 100)),
    "two byte order marks": (
        "BUNDLE_DAMAGED",
        text_of("manifest.json", b"{", b"\xef\xbb\xbf" * 2 + b"{"),
    ),
    "labels with a byte order mark": (
        "BUNDLE_DAMAGED",
        head_of(labels='\ufeff["a", "b", "c", "d"]'),
    ),
    "scale with a byte order mark": ("BUNDLE_DAMAGED", head_of(logit_scale="\ufeff100")),
    "zeros behind the manifest": (
        "BUNDLE_DAMAGED",
        lambda b: (b / "manifest.json").write_bytes((b / "manifest.json").read_bytes() + bytes(99)),
    ),
    "a second manifest behind a zero": (
        "BUNDLE_DAMAGED",
        lambda b: (b / "manifest.json").write_bytes((b / "manifest.json").read_bytes() + b"\0{}"),
    ),
    "zero behind the preprocessing": ("BUNDLE_DAMAGED", append("preprocess_cfg.json", b"\0")),
    "zero behind the labels": ("BUNDLE_DAMAGED", head_of(labels='["a", "b", "c", "d"]\0')),
    "zero behind the scale": ("BUNDLE_DAMAGED", head_of(logit_scale="100\0")),
    "number beyond all floats": ("BUNDLE_DAMAGED", entry(b'"x": 1e999')),
    "half a surrogate pair": ("BUNDLE_DAMAGED", entry(b'"x": "\\ud800"')),
    "label of half a surrogate pair": (
        "BUNDLE_DAMAGED",
        head_of(labels='["a", "b", "c", "\\udc00"]'),
    ),
    "short head": ("BUNDLE_DAMAGED", lambda b: replace_file(b, HEAD, b"\xff")),
    "huge head": ("BUNDLE_DAMAGED", lambda b: replace_file(b, HEAD, b"\xff" * 64)),
    "no tensor": ("BUNDLE_DAMAGED", lambda b: replace_file(b, HEAD, header(b"{}"))),
    "lying head": (
        "BUNDLE_DAMAGED",
        lambda b: replace_file(
            b,
            HEAD,
            header(
                b'{"text_features":{"dtype":"F32","shape":[4294967297,4294967296],'
                b'"data_offsets":[0,0]}}'
            ),
        ),
    ),
    "schema as truth": ("BUNDLE_SCHEMA_UNKNOWN", changed(schema=True)),
    "schema as 1.0": ("BUNDLE_SCHEMA_UNKNOWN", changed(schema=1.0)),
    "linked manifest": ("BUNDLE_DAMAGED", lambda b: link(b / "manifest.json")),
    "manifest in UTF-16": (
        "BUNDLE_DAMAGED",
        lambda b: (b / "manifest.json").write_text((b / "manifest.json").read_text(), "utf-16"),
    ),
    "manifest with NaN": ("BUNDLE_DAMAGED", changed(accuracy=float("nan"))),
    "size as truth": (
        "BUNDLE_DAMAGED",
        lambda b: edit_manifest(b, lambda m: m["files"]["model.onnx"].update(size=True)),
    ),
    "no hash": (
        "BUNDLE_DAMAGED",
        lambda b: edit_manifest(b, lambda m: m["files"]["model.onnx"].pop("sha256")),
    ),
    "input of float16": ("BUNDLE_DAMAGED", graph_of("input", dtype="float16")),
    "input of bytes": ("RUNTIME_FAILED", graph_of("input", dtype="uint8")),
    "input without a name": ("BUNDLE_DAMAGED", graph_of("input", name="")),
    "other input": ("RUNTIME_FAILED", graph_of("input", name="pixels")),
    "other output": ("RUNTIME_FAILED", graph_of("output", name="nope")),
    "probe without a name": ("BUNDLE_DAMAGED", probes({})),
    "probe beyond its codes": ("BUNDLE_DAMAGED", probes(PROBE | {"high": 256})),
    "probe of nearly 2**64": ("BUNDLE_DAMAGED", probes(PROBE | {"low": 2**64 - 1})),
    "probe of truth": ("BUNDLE_DAMAGED", probes(PROBE | {"low": False})),
    "too many probes": ("BUNDLE_DAMAGED", probes(*[PROBE] * 65)),
    "probes that are no list": (
        "BUNDLE_DAMAGED",
        lambda b: edit_manifest(b, lambda m: m["graph"].update(probes={"a": PROBE})),
    ),
    "deviation of zero": ("BUNDLE_DAMAGED", preprocessing(std=[0.5, 0, 0.5])),
    "two means": ("BUNDLE_DAMAGED", preprocessing(mean=[0.5, 0.5])),
    "mean beyond float32": ("BUNDLE_DAMAGED", preprocessing(mean=[0.5, 0.5, 1e300])),
    "mean of an infinite pixel": ("BUNDLE_DAMAGED", preprocessing(mean=[0.5, 0.5, 1e7])),
    "deviation of an infinite pixel": ("BUNDLE_DAMAGED", preprocessing(std=[0.5, 0.5, 1e-40])),
    "size of zero": ("BUNDLE_DAMAGED", preprocessing(size=0)),
    "size of truth": ("BUNDLE_DAMAGED", preprocessing(size=True)),
    "three sizes": ("BUNDLE_DAMAGED", preprocessing(size=[32, 24, 3])),
    "huge size": ("BUNDLE_DAMAGED", preprocessing(size=16385)),
    "grey mode": ("BUNDLE_DAMAGED", preprocessing(mode="L")),
    "nearest neighbour": ("BUNDLE_DAMAGED", preprocessing(interpolation="nearest")),
    "fill beyond white": ("BUNDLE_DAMAGED", preprocessing(fill_color=256)),
    "crop of nothing": ("BUNDLE_DAMAGED", preprocessing(crop_pct=0)),
    "unknown crop": ("BUNDLE_DAMAGED", preprocessing(crop_mode="random")),
    "head of float64": ("BUNDLE_DAMAGED", head_of(dtype=np.float64)),
    "head of NaN": ("BUNDLE_DAMAGED", head_of(np.full((4, 20), np.nan))),
    "head of another model": ("BUNDLE_DAMAGED", head_of(np.ones((4, 8)))),
    "head of no class": ("BUNDLE_DAMAGED", head_of(np.ones((0, 20)))),
    "scale of NaN": ("BUNDLE_DAMAGED", head_of(logit_scale="nan")),
    "scale of text": ("BUNDLE_DAMAGED", head_of(logit_scale="fifty")),
    "scale beyond all": ("BUNDLE_DAMAGED", head_of(logit_scale="1e999")),
    "scale of truth": ("BUNDLE_DAMAGED", head_of(logit_scale="true")),
    "scale of a float's end": ("BUNDLE_DAMAGED", head_of(logit_scale="1e308")),
    "scale below 0": ("BUNDLE_DAMAGED", head_of(logit_scale="-5")),
    "scale of many digits": ("BUNDLE_DAMAGED", head_of(logit_scale="1" * 401)),
    "head with a long row": (
        "BUNDLE_DAMAGED",
        head_of(np.vstack([np.full((3, 20), 20**-0.5), np.full((1, 20), 3 * 20**-0.5)])),
    ),
    "head of empty rows": ("BUNDLE_DAMAGED", head_of(np.zeros((4, 20)))),
    "byte behind the head": ("BUNDLE_DAMAGED", head_written(behind=b"x")),
    "number in front of the head": (
        "BUNDLE_DAMAGED",
        head_written(lambda h: h["text_features"].update(data_offsets=[4, 324]), front=bytes(4)),
    ),
    "second tensor of a head": (
        "BUNDLE_DAMAGED",
        head_written(
            lambda h: h.update(more={"dtype": "F32", "shape": [1], "data_offsets": [320, 324]}),
            behind=bytes(4),
        ),
    ),
    "labels given twice": (
        "BUNDLE_DAMAGED",
        head_written(written=lambda text: text.replace(b'{"labels"', b'{"labels": "", "labels"')),
    ),
    "head without metadata": ("BUNDLE_DAMAGED", head_written(lambda h: h.pop("__metadata__"))),
    "metadata as a number": ("BUNDLE_DAMAGED", more_metadata(5)),
    "metadata of nothing": ("BUNDLE_DAMAGED", more_metadata(None)),
    "metadata as a list": ("BUNDLE_DAMAGED", head_written(lambda h: h.update(__metadata__=[]))),
    "space in front of a header": (
        "BUNDLE_DAMAGED",
        head_written(written=lambda text: b" " + text),
    ),
    "header of 17 MiB": (
        "BUNDLE_DAMAGED",
        head_written(written=lambda text: text + b" " * (17 << 20)),
    ),
    "label with a zero byte": ("BUNDLE_DAMAGED", head_of(labels='["a", "b", "c", "d\\u0000e"]')),
    "three labels": ("BUNDLE_DAMAGED", head_of(labels='["a", "b", "c"]')),
    "labels of numbers": ("BUNDLE_DAMAGED", head_of(labels="[1, 2, 3, 4]")),
    "probe of another output": ("RUNTIME_FAILED", probes(PROBE | {"output": "image_features"})),
    "probe of no output": ("RUNTIME_FAILED", probes(PROBE)),
    "two outputs of features": ("RUNTIME_FAILED", features_twice),
    "batch of nothing": ("RUNTIME_FAILED", batch_of(0)),
    "batch of 65537": ("RUNTIME_FAILED", batch_of(65537)),
    "features beyond int32": ("RUNTIME_FAILED", encoder_of(1, 2**32 + 20)),
    "features of another length": ("BUNDLE_DAMAGED", encoder_of(1, 21)),
    "weights in a hidden file": ("RUNTIME_FAILED", weights_beside),
    "weights somewhere else": ("RUNTIME_FAILED", weights_elsewhere),
    "changed text tower": (
        "BUNDLE_CHECKSUM",
        text_damaged(lambda b: flip(b / "text/model.onnx")),
    ),
    "truncated tokenizer": (
        "BUNDLE_DAMAGED",
        text_damaged(lambda b: (b / "text/tokenizer.json").write_bytes(b"{}")),
    ),
    "missing tokenizer": (
        "BUNDLE_DAMAGED",
        text_damaged(lambda b: (b / "text/tokenizer.json").unlink()),
    ),
    "part of a text tower": ("BUNDLE_DAMAGED", text_damaged(unlist("text/tokenizer.json"))),
    "unlisted text tower": ("BUNDLE_DAMAGED", lambda b: (b / "text").mkdir()),
    "unlisted file beside the text tower": (
        "BUNDLE_DAMAGED",
        text_damaged(lambda b: (b / "text/extra.so").write_bytes(b"x")),
    ),
    "manifest beside the text tower": (
        "BUNDLE_DAMAGED",
        text_damaged(lambda b: (b / "text/manifest.json").write_bytes(b"{}")),
    ),
    "linked text folder": ("BUNDLE_DAMAGED", text_damaged(lambda b: link(b / "text"))),
    "linked text file": ("BUNDLE_DAMAGED", text_damaged(lambda b: link(b / "text/text.json"))),
    "other file in the text folder": (
        "BUNDLE_UNSAFE_NAME",
        text_damaged(lambda b: replace_file(b, "text/more.json", b"{}")),
    ),
    "out of the text folder": ("BUNDLE_UNSAFE_NAME", lists("text/../model.onnx")),
    "text folder as a file": ("BUNDLE_DAMAGED", text_as_a_file),
    "file of the text folder's name": ("BUNDLE_DAMAGED", lambda b: make_listed(b, "text")),
}
