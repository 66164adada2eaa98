"""`regcache verify` and the files of a bundle: changed, of an older version, missing or damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import save

from regcache_deploy.bundling.certify import certify_bundle
from regcache_deploy.cli.main import main
from regcache_deploy.errors import BundleError
from regcache_engines.bundle import MANIFEST, TEXT_FEATURES, Bundle
from regcache_engines.bundle import PREPROCESS as PREPROCESS_FILE
from regcache_engines.text_config import TEXT_FILES
from regcache_export import certificate
from regcache_export.bundle import add_files, write_bundle
from regcache_export.certificate_files import CERTIFICATE, IMAGES
from regcache_export.claims import entry_hashes
from regcache_export.targets import GraphOptions
from regcache_export.verify import verify_bundle
from tests.bundling.certificate_helpers import calibration, certified, pixels, plan_of
from tests.cpp.damaging import edit_manifest
from tests.export.graph_helpers import rewrite

pytest.importorskip("onnxruntime")

# ---- beside the model ---------------------------------------------------------------------------


def other_preprocessing(path: Path) -> None:
    known = Bundle.open(path).preprocess
    add_files(path, {PREPROCESS_FILE: json.dumps(known | {"mean": [0.1, 0.2, 0.3]}).encode()})


def other_head(path: Path) -> None:
    bundle = Bundle.open(path)
    tensor = {"text_features": np.ascontiguousarray(bundle.text_features[::-1])}
    described = {"labels": json.dumps(bundle.labels), "logit_scale": str(bundle.logit_scale)}
    add_files(path, {TEXT_FEATURES: save(tensor, metadata=described)})


def no_head(path: Path) -> None:
    edit_manifest(path, lambda manifest: manifest["files"].pop(TEXT_FEATURES))
    (path / TEXT_FEATURES).unlink()


def other_regcache(path: Path) -> None:
    edit_manifest(path, lambda manifest: manifest["regcache"].update(delete_count=7))


def said(**entries: Any) -> Callable[[Path], None]:
    return lambda path: edit_manifest(path, lambda manifest: manifest.update(entries))


def said_of_the_graph(**entries: Any) -> Callable[[Path], None]:
    return lambda path: edit_manifest(path, lambda m: m["graph"].update(entries))


def a_text_tower(path: Path) -> None:
    add_files(path, dict.fromkeys(TEXT_FILES, b"x"))


BESIDE = {
    "accuracy": (said(accuracy={"fp32": 1.0}), "'accuracy' in manifest.json"),
    "bits": (said(bits="W4A4"), "'bits' in manifest.json"),
    "caution": (said(provenance={"caution": ""}), "'provenance' in manifest.json"),
    "tokens": (said_of_the_graph(tokens_out=1), "'graph' in manifest.json"),
    "text tower": (a_text_tower, " and ".join(TEXT_FILES)),
    "preprocessing": (other_preprocessing, PREPROCESS_FILE),
    "another head": (other_head, TEXT_FEATURES),
    "no head": (no_head, TEXT_FEATURES),
    "manifest": (other_regcache, "'regcache' in manifest.json"),
}


@pytest.mark.parametrize("what", BESIDE)
def test_verify_names_what_was_changed_beside_the_model(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    act, name = BESIDE[what]
    path = certified(tmp_path, calibration(), GraphOptions())
    act(path)
    assert main(["verify", str(path)]) == 6
    assert f"{name}: not what was certified" in capsys.readouterr().err


def test_an_older_certificate_says_nothing_of_the_files_beside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = certified(tmp_path, calibration(), GraphOptions())
    assert verify_bundle(Bundle.open(path)).unknown == ()
    document = json.loads((path / CERTIFICATE).read_text())
    del document["manifest"]
    a_text_tower(path)
    for known, unknown in (
        (document, (*TEXT_FILES, MANIFEST)),
        ({**document, "files": None}, (PREPROCESS_FILE, TEXT_FEATURES, *TEXT_FILES, MANIFEST)),
    ):
        kept = {name: value for name, value in known.items() if value is not None}
        add_files(path, {CERTIFICATE: json.dumps(kept).encode()})
        report = verify_bundle(Bundle.open(path))
        assert (report.problem, report.unknown) == (None, unknown)
        assert main(["verify", str(path)]) == 0
        assert f"of an older version: {', '.join(unknown)}" in capsys.readouterr().out


def certified_again(path: Path) -> None:
    """The certificate's hashes of the manifest, written by somebody who changed it."""
    bundle = Bundle.open(path)
    document = json.loads(bundle.read(CERTIFICATE)) | {"manifest": entry_hashes(bundle.manifest)}
    add_files(path, {CERTIFICATE: json.dumps(document).encode()})


FALSE: dict[str, dict[str, Any]] = {
    "bits": {"bits": "W4A4"},
    "quantized_linears": {"quantized_linears": 1},
    "strict_paper": {"strict_paper": True},
    "model": {"model": "another"},
    "merge": {"merge": {"counts": [1]}},
    "graph.tokens": {"graph": {"tokens": 1}},
    "graph.tokens_out": {"graph": {"tokens_out": 1}},
    "graph.target": {"graph": {"target": "onnxruntime"}},
    "graph.input": {"graph": {"input": {"name": "image", "dtype": "float32", "shape": [1]}}},
    "graph.opset": {"graph": {"opset": 13}},
    "graph.probes": {"graph": {"probes": [{"low": 0, "high": 255}]}},
}


@pytest.mark.parametrize("name", FALSE)
def test_verify_holds_the_manifest_against_the_graph_itself(name: str, tmp_path: Path) -> None:
    """Whoever writes a manifest can write its hashes into the certificate, too."""
    path = certified(tmp_path, calibration(), GraphOptions(probes=1))
    assert verify_bundle(Bundle.open(path)).problem is None

    def change(manifest: dict[str, Any]) -> None:
        for entry, value in FALSE[name].items():
            if entry == "graph":
                value = {**manifest[entry], **value}
                value["probes"] = [manifest[entry]["probes"][0] | p for p in value["probes"]]
            manifest[entry] = value

    edit_manifest(path, change)
    certified_again(path)
    problem = verify_bundle(Bundle.open(path)).problem
    assert problem == f"'{name}' in manifest.json: not what was certified"


def test_verify_holds_what_is_said_of_the_text_tower_against_its_file(tmp_path: Path) -> None:
    from tests.text_bundles import text_bundle

    calibrated = calibration()
    path = text_bundle(tmp_path / "text.regcache", plan=plan_of(calibrated))
    certify_bundle(path, plan_of(calibrated), GraphOptions(), calibrated, pixels())
    assert verify_bundle(Bundle.open(path)).problem is None
    edit_manifest(path, lambda manifest: manifest["text"].update(weights_sha256="0" * 64))
    certified_again(path)
    problem = verify_bundle(Bundle.open(path)).problem
    assert problem == "'text.weights_sha256' in manifest.json: not what was certified"


def test_only_codes_that_were_compared_count_as_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fixed batch leaves two of six images out at export, too; fewer images have other hashes."""
    path = certified(tmp_path, calibration(), GraphOptions(batch=4))
    report = verify_bundle(Bundle.open(path))
    assert (report.images, report.hashed, report.same_codes) == (4, 12, 1)
    document = json.loads((path / CERTIFICATE).read_text())
    document["code_sha256"] = dict.fromkeys(document["code_sha256"], "0" * 64)
    add_files(path, {CERTIFICATE: json.dumps(document).encode()})
    assert verify_bundle(Bundle.open(path)).same_codes == 0
    free = certified(tmp_path, calibration(), GraphOptions())
    report = verify_bundle(Bundle.open(free), 2)
    assert (report.hashed, report.to_json()["same_codes"]) == (0, None)
    for words, said in (([], True), (["--images", "2"], False)):
        assert main(["verify", str(free), *words]) == 0
        assert ("very codes" in capsys.readouterr().out) is said


# ---- bad input ----------------------------------------------------------------------------------


def test_a_bundle_without_certificate(tmp_path: Path, capsys: Any) -> None:
    path = write_bundle(plan_of(calibration()), tmp_path / "tiny.regcache")
    assert main(["verify", str(path)]) == 5
    assert "certificate.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "data"),
    [
        (CERTIFICATE, b"{"),
        (CERTIFICATE, b"[]"),
        (CERTIFICATE, b'{"schema": 99}'),
        (CERTIFICATE, b'{"schema": 1}'),
        (CERTIFICATE, b'{"a": ' * 100_000),
        ("model.onnx", b"no model"),
        (IMAGES, b"nothing"),
        (IMAGES, certificate.images_file(np.zeros((0, 4, 4, 3), np.uint8))),
    ],
)
def test_a_damaged_certificate(name: str, data: bytes, tmp_path: Path) -> None:
    path = certified(tmp_path, calibration(), GraphOptions())
    add_files(path, {name: data})
    with pytest.raises(BundleError):
        verify_bundle(Bundle.open(path))


@pytest.mark.parametrize("section", ["parameters", "code_sha256", "files"])
def test_a_certificate_with_a_list_for_an_object(section: str, tmp_path: Path) -> None:
    path = certified(tmp_path, calibration(), GraphOptions())
    document = json.loads((path / CERTIFICATE).read_text()) | {section: []}
    add_files(path, {CERTIFICATE: json.dumps(document).encode()})
    with pytest.raises(BundleError, match=f"no readable '{section}'"):
        verify_bundle(Bundle.open(path))


@pytest.mark.parametrize(
    ("section", "change", "said"),
    [
        ("encoder", {"patch_size": [8, 4]}, "describes another encoder"),
        ("encoder", {"heads": 2}, "describes another encoder"),
        ("encoder", {"num_prefix_tokens": 7}, "describes another encoder"),
        ("regcache", {"delete_count": 1}, "describes another encoder"),
        ("regcache", {"delete_count": 0}, "which block deletes tokens"),
        ("regcache", {"delete_block": 0}, "which block deletes tokens"),
        ("regcache", {"delete_at": "nowhere"}, "where a block deletes tokens"),
        ("offsets", {"blocks.0.attn.qkv": 10**9}, "describes another encoder"),
    ],
)
def test_a_certificate_of_another_encoder(
    section: str, change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = certified(tmp_path, calibration(), GraphOptions())
    document = json.loads((path / CERTIFICATE).read_text())
    assert document[section].keys() >= change.keys()
    document[section] |= change
    add_files(path, {CERTIFICATE: json.dumps(document).encode()})
    with pytest.raises(BundleError, match=said):
        verify_bundle(Bundle.open(path))


def test_a_head_of_another_encoder(tmp_path: Path) -> None:
    path = certified(tmp_path, calibration(), GraphOptions())
    described = {"labels": "[]", "logit_scale": "1"}
    head = save({"text_features": np.full((4, 7), 7**-0.5, np.float32)}, metadata=described)
    add_files(path, {TEXT_FEATURES: head})
    with pytest.raises(BundleError, match="have 7 numbers and the embeddings 20"):
        verify_bundle(Bundle.open(path))


def test_verify_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = certified(tmp_path, calibration(), GraphOptions(target="onnxruntime"))
    assert main(["verify", str(path), "--json", "--images", "2"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["verified"] is True
    assert report["images"] == 2
    assert main(["verify", str(path), "--images", "0"]) == 2
    assert main(["verify", str(tmp_path / "none.regcache")]) == 5


def other_function(model: onnx.ModelProto) -> None:
    """A Gelu of the model's own: ONNX Runtime leaves it aside, and other runtimes do not."""
    relu = onnx.helper.make_node("Relu", ["x"], ["y"])
    opsets = [onnx.helper.make_opsetid("", 21)]
    model.functions.append(
        onnx.helper.make_function("", "Gelu", ["x"], ["y"], [relu], opsets, ["approximate"])
    )


def other_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 20


def other_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def other_metadata(model: onnx.ModelProto) -> None:
    (tokens,) = (entry for entry in model.metadata_props if entry.key == "regcache.tokens")
    tokens.value = "1"


@pytest.mark.parametrize("change", [other_function, other_opset, other_batch, other_metadata])
def test_verify_notices_what_is_neither_a_node_nor_a_constant(change: Any, tmp_path: Path) -> None:
    path = certified(tmp_path, calibration(), GraphOptions())
    rewrite(path, change)
    problem = verify_bundle(Bundle.open(path)).problem
    assert problem is not None
    assert "functions or metadata of model.onnx: not what was certified" in problem
