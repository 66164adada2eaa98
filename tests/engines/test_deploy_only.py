"""The commands for a bundle run where neither torch nor onnx is installed.

A block on imports stands in for such a machine here; `make test-clean` makes a real one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from regcache_deploy.cli.main import main
from regcache_export.onnx_proto import FIELDS, NUMPY, from_array, to_array
from tests.engines.deployed import COMMANDS, TEXT_COMMANDS, deployed_folder

MISSING = {
    "torch", "torchvision", "onnx", "onnx_ir", "onnxslim", "open_clip", "timm", "sklearn", "scipy",
    "transformers", "matplotlib", "jinja2", "openvino", "yaml",
}  # fmt: skip

BLOCKED = f"""
import sys

sys.modules |= dict.fromkeys({sorted(MISSING)})  # None there means that there is no such module
from regcache_deploy.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deployed_folder(tmp_path_factory.mktemp("deployed"))


def regcache(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCKED, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words[:3]))
def test_a_command_runs(words: tuple[str, ...], folder: Path) -> None:
    done = regcache(folder, *words)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout


def test_a_head_of_other_classes_is_made_and_taken(folder: Path) -> None:
    pytest.importorskip("tokenizers")
    for words in TEXT_COMMANDS:
        done = regcache(folder, *words)
        assert done.returncode == 0, (words, done.stderr)
    assert any(name in done.stdout for name in ("cat", "dog", "beach", "four"))


def test_verification_is_that_of_a_machine_with_onnx(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["verify", str(folder / "t.regcache"), "--json"]
    assert main(words) == 0
    with_onnx = json.loads(capsys.readouterr().out)
    without = json.loads(regcache(folder, *words).stdout)
    assert without == with_onnx
    assert with_onnx["same_codes"] == 1.0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("eval t.regcache --on fp32 --data data", "needs torch, which is not installed"),
        ("bench t.regcache --compare fp32,int8", "needs onnx, which is not installed"),
        ("eval t.regcache --data demo", "needs torch, which is not installed"),
        ("eval t.regcache --data data --task linear_probe --train-data train", "needs sklearn"),
    ],
)
def test_what_needs_more_says_what_to_install(words: str, says: str, folder: Path) -> None:
    done = regcache(folder, *words.split())
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("regcache: error")]
    assert len(errors) == 1
    assert says in errors[0]
    assert "pip install 'regcache-deploy[" in errors[0]


def test_our_declarations_are_onnxs() -> None:
    import onnx
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto

    file = FileDescriptorProto()
    onnx.onnx_ml_pb2.DESCRIPTOR.CopyToProto(file)
    theirs = {message.name: message for message in file.message_type}
    theirs |= {f"{m.name}.{n.name}": n for m in file.message_type for n in m.nested_type}
    for name, text in FIELDS.items():
        fields = {field.name: field for field in theirs[name].field}
        for word in text.split():
            label, kind, number = word.replace("=", ":").split(":")
            field = fields[label]
            known: str = field.type_name.removeprefix(".onnx.")
            if field.type != FieldDescriptorProto.TYPE_MESSAGE:
                known = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
            known = "int32" if known == "enum" else known
            if field.label == FieldDescriptorProto.LABEL_REPEATED:
                known += "+" if field.options.packed else "*"
            assert (known, field.number) == (kind, int(number)), f"{name}.{label}"
    for dtype, value in NUMPY.items():
        assert int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))) == value


@pytest.mark.parametrize("dtype", sorted(NUMPY))
def test_tensors_are_read_and_written_as_onnx_does(dtype: str) -> None:
    from onnx import helper, numpy_helper

    value = np.array([[0, 1, 2], [3, 4, 5]]).astype(dtype)
    written = from_array(value, "x")
    assert written == numpy_helper.from_array(value, "x")
    assert np.array_equal(to_array(written), value)
    listed = helper.make_tensor("x", NUMPY[dtype], value.shape, value.ravel().tolist())
    found = to_array(listed)
    assert found.dtype == value.dtype
    assert np.array_equal(found, value)
