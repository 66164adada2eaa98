"""`regcache build` of a merged bundle: the float file merges nothing, and INT8 may stop merging."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from regcache_deploy.bench.subjects import float_plan
from regcache_deploy.bundling.certify import certify_bundle
from regcache_deploy.cli.main import main
from regcache_deploy.contract.decide import Drop, decide
from regcache_deploy.quantization.plan import calibration_of, make_plan
from regcache_engines.bundle import Bundle
from regcache_export.bundle import write_bundle
from regcache_export.merge import Merge
from regcache_export.plan import Plan
from regcache_export.targets import GraphOptions
from regcache_export.verify import verify_bundle
from tests.bundling.certificate_helpers import pixels
from tests.tiny_plans import PREPROCESS, naive_calibration, tame_encoder, tiny_regcache

MERGE = Merge((1, 2, 0))


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    encoder = tame_encoder().merging(MERGE)
    calibration = naive_calibration(encoder, tiny_regcache(encoder))
    plan = make_plan(
        calibration,
        regcache_config=calibration.regcache.config if calibration.regcache else None,
        preprocess=PREPROCESS,
        provenance={"model": "tiny", "baseline": "naive"},
    )
    plan.save(folder)
    path = write_bundle(plan, folder / "t.regcache")
    certify_bundle(path, plan, GraphOptions(), calibration, pixels(16))
    return folder


def test_the_float_file_merges_nothing(run_folder: Path) -> None:
    plan = Plan.load(run_folder)
    assert plan.merge == MERGE
    assert float_plan(plan).merge is None


def test_the_unmerged_file_is_kept_as_a_bundle_with_its_certificate(
    run_folder: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_is_bad(attempts: Any, contract: Any) -> Any:
        # the merged file is refused whatever the machine measures
        bad = replace(attempts[0](), drop=Drop(100.0, 100.0, 100.0, 8, "cosine"))
        return decide([lambda: bad, *attempts[1:]], contract)

    monkeypatch.setattr("regcache_deploy.contract.run.decide", first_is_bad)
    arguments = ["--engine", "onnxruntime", "--output", str(tmp_path), "--threads", "1"]
    arguments += ["--seconds", "0.2", "--max-drop", "99", "--min-speedup", "1e-6", "--json", "-q"]
    code = main(["build", str(run_folder / "t.regcache"), *arguments])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    document = json.loads(printed.out)
    assert document["kept"] == "unmerged"
    place = tmp_path / "t-unmerged" / "t-unmerged.regcache"
    assert document["path"] == str(place)
    kept = Plan.load(place.parent)
    assert kept.merge is None
    assert kept.linears.keys() == Plan.load(run_folder).linears.keys()
    verify_bundle(Bundle.open(place)).check()
    images = torch.randn(2, 3, 32, 24)
    alone = calibration_of(kept)
    assert alone.encoder(images, alone.numerics(), alone.regcache).shape[0] == 2
