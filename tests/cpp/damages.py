"""What can be wrong with a bundle, and the status that each must be refused with."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


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


def link(path: Path, keep: bool = True) -> None:
    target = path.with_name(".moved")
    path.rename(target)
    path.symlink_to(target)
    if not keep:
        target.unlink()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def repeat(entry: bytes) -> Callable[[Path], None]:
    """Give the manifest a key for the second time, behind the first; the last one counts."""

    def damage(bundle: Path) -> None:
        path = bundle / "manifest.json"
        text = path.read_bytes().rstrip()
        path.write_bytes(text[:-1] + b", " + entry + b"}")

    return damage


def lists(name: str) -> Callable[[Path], None]:
    def damage(bundle: Path) -> None:
        entry = {"sha256": "0" * 64, "size": 1}
        edit_manifest(bundle, lambda manifest: manifest["files"].update({name: entry}))

    return damage


def header(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


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
    "second of two schemas": ("BUNDLE_SCHEMA_UNKNOWN", repeat(b'"schema": 2')),
    "second of two lists": ("BUNDLE_DAMAGED", repeat(b'"files": {}')),
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
}
