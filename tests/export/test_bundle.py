"""Bundles are written whole or not at all, and opened only if they are as they were written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from regcache_engines import Bundle, files
from regcache_engines.files import atomic_write_bytes, sha256_file
from regcache_export.bundle import add_files, seal_bundle, write_bundle
from regcache_export.errors import BundleError, ConfigError
from regcache_export.plan import Plan
from tests.tiny_plans import PREPROCESS, tiny_plan

FILES = {"manifest.json", "model.onnx", "preprocess_cfg.json", "text_features.safetensors"}


@pytest.fixture(scope="module")
def plan() -> Plan:
    return tiny_plan()


@pytest.fixture
def bundle(plan: Plan, tmp_path: Path) -> Path:
    return write_bundle(plan, tmp_path / "tiny.regcache", {"accuracy": {"top1": 0.5}})


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir()}


# ---- written ------------------------------------------------------------------------------------


def test_what_is_written_can_be_opened(bundle: Path, plan: Plan) -> None:
    assert names(bundle) == FILES
    assert names(bundle.parent) == {bundle.name}
    opened = Bundle.open(bundle)
    assert opened.preprocess == PREPROCESS
    assert opened.labels == ("cat", "dog", "été", "four")
    assert opened.logit_scale == 50.0
    np.testing.assert_array_equal(opened.text_features, plan.text_features)
    onnx.checker.check_model(str(opened.model_path), full_check=True)


def test_the_manifest_states_the_contract(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    graph = manifest["graph"]
    assert graph["input"] == {"name": "image", "dtype": "float32", "shape": ["batch", 3, 32, 24]}
    assert graph["output"]["name"] == "image_features"
    assert graph["output"]["shape"] == ["batch", 20]
    assert (graph["opset"], graph["tokens"], graph["tokens_out"]) == (21, 13, 9)
    assert manifest["bits"] == "W8A8"
    assert (manifest["quantized_linears"], manifest["linears"]) == (12, 12)
    assert (manifest["model"], manifest["baseline"]) == ("tiny", "naive")
    assert manifest["regcache"]["delete_count"] == 4
    assert manifest["accuracy"] == {"top1": 0.5}
    for name, entry in manifest["files"].items():
        assert entry["size"] == (bundle / name).stat().st_size


def test_bundle_without_head_or_quantization(tmp_path: Path) -> None:
    plan = replace(tiny_plan(quantized=False), text_features=None, labels=())
    opened = Bundle.open(write_bundle(plan, tmp_path / "float.regcache"))
    assert opened.manifest["bits"] == "float"
    assert not opened.has_text_features
    with pytest.raises(BundleError, match="no text_features"):
        _ = opened.labels


WRITE = """
import sys
from pathlib import Path
from regcache_export.bundle import write_bundle
from regcache_export.plan import Plan
import regcache_export.inspect
write_bundle(Plan.load(Path(sys.argv[1])), Path(sys.argv[2]), {"accuracy": {"top1": 0.5}})
assert not {"torch", "onnxruntime"} & sys.modules.keys()
"""


def test_same_plan_same_bytes_in_another_process(bundle: Path, plan: Plan, tmp_path: Path) -> None:
    plan.save(tmp_path / "plan")
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", WRITE, str(tmp_path / "plan"), str(tmp_path / "there")]
    subprocess.run(command, env=environment, check=True)
    assert hashes(tmp_path / "there") == hashes(bundle)


def test_replacing_a_bundle(bundle: Path, plan: Plan) -> None:
    (bundle / "stray.txt").write_text("left by hand")
    write_bundle(replace(plan, logit_scale=7.0), bundle)
    assert Bundle.open(bundle).logit_scale == 7.0
    assert names(bundle.parent) == {bundle.name}


def test_a_failure_while_writing_keeps_the_old_bundle(
    bundle: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = hashes(bundle)

    def full_disk(path: Path, data: bytes) -> None:
        if path.name == "manifest.json":
            raise OSError(28, "No space left on device")
        atomic_write_bytes(path, data)

    monkeypatch.setattr("regcache_export.bundle.atomic_write_bytes", full_disk)
    for action in (
        lambda: write_bundle(plan, bundle),
        lambda: write_bundle(plan, bundle.with_name("other.regcache")),
        lambda: add_files(bundle, {"report.html": b"<html>"}),
        lambda: seal_bundle(bundle, bundle.with_name("sealed.regcache")),
    ):
        with pytest.raises(ConfigError, match="No space left"):
            action()
        assert hashes(bundle) == before
        assert names(bundle.parent) == {bundle.name}


def test_a_failed_rename_brings_the_old_bundle_back(
    bundle: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = hashes(bundle)
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if ".new." in self.name:
            raise OSError(5, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(files, "exchange", lambda one, other: False)  # as on NFS
    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(ConfigError, match="Input/output"):
        write_bundle(plan, bundle)
    assert hashes(bundle) == before
    assert names(bundle.parent) == {bundle.name}


def test_an_interrupt_leaves_nothing(
    bundle: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path, data: bytes) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("regcache_export.bundle.atomic_write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(plan, bundle)
    assert names(bundle.parent) == {bundle.name}
    Bundle.open(bundle)


def test_what_is_no_bundle_is_not_replaced(plan: Plan, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "cat.jpg").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"without manifest\.json"):
        write_bundle(plan, folder)
    with pytest.raises(BundleError, match="not a bundle"):
        write_bundle(plan, folder / "cat.jpg")
    with pytest.raises(ConfigError, match="cannot write"):
        write_bundle(plan, folder / "cat.jpg" / "inside")
    assert names(folder) == {"cat.jpg"}
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(BundleError, match="not a bundle"):
        write_bundle(plan, tmp_path / "link")


@pytest.mark.parametrize(
    ("changes", "extra", "message"),
    [
        ({}, {"files": {}}, "'files'"),
        ({}, {"schema": 2}, "'schema'"),
        ({}, {"accuracy": float("nan")}, "JSON"),
        ({}, {"accuracy": {1, 2}}, "JSON"),
        ({"preprocess": {"mean": float("inf")}}, {}, "preprocessing"),
        ({"labels": ("one",)}, {}, "4 text features for 1 labels"),
        ({"text_features": np.ones((4, 7), np.float32)}, {}, "another model"),
        ({"linears": {"blocks.9.mlp.fc1": None}}, {}, "blocks.9"),
    ],
)
def test_what_cannot_be_written_is_refused(
    plan: Plan, tmp_path: Path, changes: dict[str, Any], extra: dict[str, Any], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        write_bundle(replace(plan, **changes), tmp_path / "x.regcache", extra)
    assert not names(tmp_path)


def test_files_can_be_added_and_replaced(bundle: Path) -> None:
    add_files(bundle, {"report.html": b"<html>", "certificate.json": b"{}"})
    add_files(bundle, {"report.html": b"<html lang='en'>"})
    opened = Bundle.open(bundle)
    assert names(bundle) == FILES | {"report.html", "certificate.json"}
    assert (bundle / "report.html").read_bytes() == b"<html lang='en'>"
    assert opened.manifest["accuracy"] == {"top1": 0.5}
    for name in ("../evil", "a/b", ".hidden", "manifest.json", ""):
        with pytest.raises(BundleError, match="cannot hold"):
            add_files(bundle, {name: b""})


def test_a_draft_is_sealed(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(source: Path, target: Path) -> None:
        raise OSError("not on this file system")

    monkeypatch.setattr(os, "link", no_links)
    final = tmp_path / "tiny.regcache"
    for _ in range(2):  # the second one replaces the first
        draft = write_bundle(plan, tmp_path / "tiny.unverified")
        assert seal_bundle(draft, final, {"agreement": {"n": 3}}) == final
        assert names(tmp_path) == {"tiny.regcache"}
    assert Bundle.open(final).manifest["agreement"] == {"n": 3}


# ---- opened -------------------------------------------------------------------------------------


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def list_as(name: str) -> Callable[[Path], object]:
    return lambda f: edit(f, lambda d: d["files"].update({name: d["files"]["model.onnx"]}))


def flip_a_byte(folder: Path) -> None:
    data = bytearray((folder / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.onnx").write_bytes(data)


def cut_the_model(folder: Path) -> None:
    data = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(data[:-10])


def make_a_link(folder: Path) -> None:
    outside = folder.parent / "outside.onnx"
    (folder / "model.onnx").rename(outside)
    (folder / "model.onnx").symlink_to(outside)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "not a bundle"),
    "no json": (lambda f: (f / "manifest.json").write_text("{"), "not readable"),
    "not utf-8": (lambda f: (f / "manifest.json").write_bytes(b'{"a": "\xff"}'), "not readable"),
    "deep json": (lambda f: (f / "manifest.json").write_text("[" * 99999), "not readable"),
    "a list": (lambda f: (f / "manifest.json").write_text("[]"), "JSON object"),
    "newer schema": (lambda f: edit(f, lambda d: d.update(schema=2)), "schema 2"),
    "no files": (lambda f: edit(f, lambda d: d.pop("files")), "lists no files"),
    "files a list": (lambda f: edit(f, lambda d: d.update(files=[])), "lists no files"),
    "model unlisted": (lambda f: edit(f, lambda d: d["files"].pop("model.onnx")), "not list model"),
    "no preprocessing": (
        lambda f: edit(f, lambda d: d["files"].pop("preprocess_cfg.json")),
        "not list preprocess",
    ),
    "no hash": (
        lambda f: edit(f, lambda d: d["files"]["model.onnx"].pop("sha256")),
        "no SHA-256",
    ),
    "entry a string": (
        lambda f: edit(f, lambda d: d["files"].update({"model.onnx": "x"})),
        "no SHA-256",
    ),
    "model missing": (lambda f: (f / "model.onnx").unlink(), "is missing"),
    "model cut": (cut_the_model, "incomplete"),
    "model changed": (flip_a_byte, "changed after"),
    "model a link": (make_a_link, "is a link"),
    "extra file": (lambda f: (f / "notes.txt").write_text("hi"), "notes.txt"),
    "extra folder": (lambda f: (f / "more").mkdir(), "more"),
    "absolute": (list_as("/etc/passwd"), "could leave"),
    "parent": (list_as("../model.onnx"), "could leave"),
    "dots": (list_as(".."), "could leave"),
    "empty": (list_as(""), "could leave"),
    "backslash": (list_as("..\\model.onnx"), "could leave"),
    "drive": (list_as("C:model.onnx"), "could leave"),
    "null": (list_as("model\0.onnx"), "could leave"),
    "itself": (list_as("manifest.json"), "could leave"),
    "too long for the disk": (list_as("a" * 300), "not readable"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_bundle_is_refused(damage: str, bundle: Path) -> None:
    act, message = DAMAGES[damage]
    act(bundle)
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.open(bundle)
    assert caught.value.exit_code == 5


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a bundle"):
        Bundle.open(tmp_path / "nowhere")


def test_hidden_files_do_not_matter(bundle: Path) -> None:
    (bundle / ".DS_Store").write_bytes(b"x")
    assert Bundle.open(bundle).preprocess


def rewrite(bundle: Path, name: str, data: bytes) -> None:
    (bundle / name).write_bytes(data)
    entry = {"sha256": sha256_file(bundle / name), "size": len(data)}
    edit(bundle, lambda d: d["files"].update({name: entry}))


def test_a_head_that_is_no_head_is_refused(bundle: Path) -> None:
    from safetensors.numpy import save

    features = {"text_features": np.full((3, 20), 20**-0.5, np.float32)}
    good = {"labels": '["a", "b", "c"]', "logit_scale": "1.0"}
    for data in (
        b"",
        b"\xff" * 64,
        save({"other": features["text_features"]}, metadata=good),
        save(features),
        save(features, metadata=good | {"labels": '["a"]'}),
        save(features, metadata=good | {"labels": "3"}),
        save(features, metadata=good | {"logit_scale": "high"}),
        save({"text_features": np.ones(3, np.float32)}, metadata=good),
    ):
        rewrite(bundle, "text_features.safetensors", data)
        with pytest.raises(BundleError, match="text_features"):
            _ = Bundle.open(bundle).text_features
    rewrite(bundle, "text_features.safetensors", save(features, metadata=good))
    assert Bundle.open(bundle).labels == ("a", "b", "c")


def test_preprocessing_must_be_an_object(bundle: Path) -> None:
    rewrite(bundle, "preprocess_cfg.json", b"[1]")
    with pytest.raises(BundleError, match="JSON object"):
        _ = Bundle.open(bundle).preprocess


@pytest.mark.parametrize("given", ["1764513480000", "9" * 30, "yesterday", "-1e3"])
def test_a_time_that_is_none_is_refused_by_its_name(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Milliseconds, as some builds set them, ended in a traceback; words were passed over."""
    draft = write_bundle(tiny_plan(), tmp_path / "draft.regcache")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", given)
    with pytest.raises(ConfigError, match=r"SOURCE_DATE_EPOCH is '.*': take seconds since 1970"):
        seal_bundle(draft, tmp_path / "sealed.regcache")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    sealed = seal_bundle(draft, tmp_path / "sealed.regcache")
    assert Bundle.open(sealed).manifest["created"] == "1970-01-01T00:00:00+00:00"
