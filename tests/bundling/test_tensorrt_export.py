"""`regcache export --target tensorrt` on the embedded demo (planted sinks): check and build."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from regcache_deploy.cli.main import main
from regcache_engines.bundle import Bundle
from tests.export.tensorrt_plans import require_rtx

SMALL = (
    "--search-images 32 --calibration-images 8 --certificate-images 8 --limit 60 --batch-size 32 -q"
)
FIXED = "--prefix-block 2 --prefix-count 4 --delete-count 4"


@pytest.mark.needs_trt
def test_demo_to_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    words = f"export --baseline repqvit --target tensorrt --output {run} --json {SMALL} {FIXED}"
    assert main(words.split()) == 0
    result = json.loads(capsys.readouterr().out)
    bundle = Bundle.open(result["bundle"])
    # the float32 twin is the simulation; float16 is reported beside it
    assert result["agreement"]["top1"] >= 0.995
    graph = bundle.manifest["graph"]
    assert (graph["target"], graph["opset"]) == ("tensorrt", 20)
    body = bundle.manifest["float16_body"]
    assert body["n"] == 60
    assert 0.95 < body["mean_cosine"] < 1
    assert sorted(path.name for path in run.iterdir() if path.name.startswith(".")) == []
    assert main(["check", str(bundle.path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [block["attention"] for block in report["blocks"]] == ["int8"] * 6
    assert main(["verify", str(bundle.path), "--images", "4", "--json"]) == 0
    verified = json.loads(capsys.readouterr().out)
    assert (verified["codes"] > 500_000, verified["images"]) == (True, 4)
    assert 0.95 < verified["optimized"]["half"] < 1
    table = {row["tensor"]: row["graph"] for row in bundle.manifest["provenance"]["quantizers"]}
    assert "symmetric" in table["blocks.0.attn.qk.query"]
    assert any("attention operands of 6 blocks" in line for line in result["differences"])
    require_rtx()
    engines = str(tmp_path / "engines")
    words = f"build {bundle.path} --engine tensorrt_rtx --output {engines} --json"
    assert main(words.split()) == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    assert (layers["int8_gemm"], layers["int8_mha"]) == (24, 6)
