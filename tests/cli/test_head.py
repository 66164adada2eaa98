"""`regcache head`, and `regcache eval --head`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regcache_deploy.cli.main import main
from regcache_engines.head import read_head
from regcache_export.bundle import write_bundle
from tests.text_bundles import text_bundle
from tests.tiny_plans import tiny_plan

pytest.importorskip("onnxruntime")
pytest.importorskip("tokenizers")

WITHOUT = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnx", "onnx_ir", "open_clip", "torchvision", "rich"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Block())
from regcache_deploy.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_bundle(tmp_path_factory.mktemp("head") / "tiny.regcache")


def test_a_head_is_made_and_used(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head, image = tmp_path / "head.safetensors", tmp_path / "a.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(image)
    words = ["--classes", "red bicycle, cat,old church", "--output", str(head), "--json", "-q"]
    assert main(["head", str(bundle), *words, "--threads", "1"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["classes"], said["templates"], said["embedding"]) == (3, 3, 20)
    features, labels, scale = read_head(head.read_bytes(), head)
    assert (features.shape, labels, scale) == ((3, 20), ("red bicycle", "cat", "old church"), 50)
    assert main(["eval", str(bundle), "--head", str(head), "--images", str(image), "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert {top["label"] for top in result["top"]} == set(labels)


def test_without_torch_and_onnx(bundle: Path, tmp_path: Path) -> None:
    """The same bytes as with them."""
    classes, head = tmp_path / "names.txt", tmp_path / "head.safetensors"
    classes.write_text("cat\ndog\n")
    words = ["head", str(bundle), "--classes", str(classes), "--templates", "one {}", "-q"]
    assert main([*words, "--output", str(head)]) == 0
    expected = head.read_bytes()
    head.unlink()
    command = [sys.executable, "-c", WITHOUT, *words, "--output", str(head)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert head.read_bytes() == expected


def test_mistakes(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = write_bundle(tiny_plan(), tmp_path / "plain.regcache")
    out = ["--output", str(tmp_path / "x")]
    for path, words, code, message in (
        (plain, ["--classes", "a,b"], 5, "no text tower"),
        (bundle, ["--classes", "none.txt"], 2, "no such file"),
        (bundle, ["--classes", "a,a"], 2, "is there twice"),
        (bundle, ["--classes", "a,b", "--templates", "openai"], 2, "no prompt with {}"),
        (bundle, ["--classes", "a,b", "--threads", "0"], 2, "out of range"),
        (bundle, [], 2, "--classes"),
        (bundle, ["--classes", "a,b", "--output", str(tmp_path)], 2, "is a folder"),
    ):
        assert main(["head", str(path), *out, *words]) == code
        assert message in capsys.readouterr().err
        assert not (tmp_path / "x").exists()
