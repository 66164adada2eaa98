"""`regcache build`: other ways than the exported one, calibrated again from the plan's weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from regcache_deploy.bundling.certify import certify_bundle
from regcache_deploy.cli.main import main
from regcache_deploy.contract.candidates import Candidates
from regcache_deploy.contract.data import JudgeData
from regcache_deploy.contract.decide import Attempt, Contract, Skipped, decide
from regcache_deploy.contract.measure import refuse_mixed
from regcache_deploy.contract.other_ways import CALIBRATION_IMAGES, OtherWays
from regcache_deploy.quantization.baselines import make_baseline
from regcache_deploy.quantization.baselines.base import Baseline
from regcache_deploy.quantization.baselines.naive import Naive
from regcache_deploy.quantization.baselines.repqvit import RepQViT
from regcache_deploy.quantization.keep_float import FloatChoice
from regcache_deploy.quantization.plan import calibration_of, make_plan
from regcache_deploy.quantization.plan_baseline import baseline_of
from regcache_deploy.quantization.quantizers import Uniform
from regcache_deploy.work.progress import Reporter
from regcache_engines.bundle import Bundle
from regcache_engines.preprocess import in_layout
from regcache_export.bundle import write_bundle
from regcache_export.plan import Plan
from regcache_export.targets import GraphOptions
from regcache_export.verify import verify_bundle
from tests.tiny_plans import PREPROCESS, tiny_encoder, tiny_plan

pytest.importorskip("onnxruntime")


def noise(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 32, 24, 3), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certified bundle with its plan (naive, RegCache), and images of two of its classes."""
    folder, plan = tmp_path_factory.mktemp("run"), tiny_plan()
    plan.save(folder)
    path = write_bundle(plan, folder / "t.regcache")
    certify_bundle(path, plan, GraphOptions(), calibration_of(plan), noise(4, 1))
    draw = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / "data" / name).mkdir(parents=True)
        for index in range(12):
            image = draw.integers(0, 255, (32, 24, 3), dtype=np.uint8)
            Image.fromarray(image).save(folder / "data" / name / f"{index}.png")
    return folder


def other_ways(folder: Path, plan: Plan | None = None, images: int = 40) -> OtherWays:
    bundle = Bundle.open(folder / "t.regcache")
    candidates = Candidates.of(bundle, folder, folder, Reporter(quiet=True))
    if plan is not None:
        candidates.plan = plan
    data = JudgeData.split(noise(images, 2).numpy(), torch.arange(images) % 4, "noise")
    return OtherWays(candidates, data, seed=0)


def test_all_ways_but_the_exported_one(folder: Path) -> None:
    found = other_ways(folder)
    assert found.refused == ""
    assert found.exported == "regcache"
    names = [way.name for way in found.ways]
    without = ["quantizer", "smoothed", "channels", "treated", "fc2_float"]
    assert names == [*without, "regcache_treated"]
    kept = next(way for way in found.ways if way.name == "fc2_float")
    assert kept.baseline.keep_float == {"blocks.1.mlp.fc2"}  # of the block that deletes


def test_without_a_register_there_is_no_regcache_to_try(folder: Path) -> None:
    plan = tiny_plan()
    provenance = {**plan.provenance, "recipe": "smoothed"}
    plan = replace(plan, regcache=None, register={}, provenance=provenance)
    found = other_ways(folder, plan)
    assert [way.name for way in found.ways] == ["quantizer", "channels", "treated"]
    named = replace(plan, provenance={**provenance, "sensitive_layer": "blocks.2.attn.qkv"})
    kept = next(way for way in other_ways(folder, named).ways if way.name == "fc2_float")
    assert kept.baseline.keep_float == {"blocks.2.mlp.fc2"}


@torch.no_grad()
def test_ranges_come_from_the_first_selecting_images(folder: Path) -> None:
    found = other_ways(folder, images=2 * CALIBRATION_IMAGES + 40)
    select = found.data.select
    assert len(select) > CALIBRATION_IMAGES
    images = torch.from_numpy(in_layout(select[:CALIBRATION_IMAGES], None, PREPROCESS))
    encoder = tiny_encoder()
    want = make_baseline("naive").calibrate(encoder, encoder.embed(images)).quantization
    for name, layer in found.alone.quantization.linears.items():
        ours, theirs = layer.input, want.linears[name].input
        assert isinstance(ours, Uniform)
        assert isinstance(theirs, Uniform)
        torch.testing.assert_close(ours.scale, theirs.scale, rtol=1e-4, atol=0)
    assert found.alone.regcache is None


def test_the_cheapest_way_that_keeps_the_drop(folder: Path) -> None:
    found = other_ways(folder)
    every = found.choose(100.0)
    assert not isinstance(every, str)
    costs = {each.way.name: each.cost for each in found.tried}
    assert costs["fc2_float"] > costs["quantizer"]
    assert every.cost <= 1.01 * min(costs.values())
    tight = min(each.drop.value for each in found.tried)
    best = found.choose(tight)
    assert not isinstance(best, str)
    assert best.drop.value == tight
    none = found.choose(tight - 1.0)
    assert isinstance(none, str)
    assert f"{tight:.2f} points" in none


def test_what_cannot_be_calibrated_again_says_so(folder: Path) -> None:
    unknown = replace(tiny_plan(), provenance={"baseline": "other"})
    assert "baseline 'other'" in other_ways(folder, unknown).refused
    reason = refuse_mixed(FloatChoice(frozenset({"a", "b"}), -1.0, False), 2, regcache=False)
    assert reason.endswith("the float file")
    assert "RegCache" not in reason


def build(
    folder: Path, output: Path, capsys: pytest.CaptureFixture[str], refuse: Sequence[int]
) -> dict[str, Any]:
    """A decision in which some attempts are refused whatever the machine measures."""

    def decided(attempts: Sequence[Attempt], contract: Contract) -> Any:
        def refused() -> Skipped:
            return Skipped("int8", "refused by the test")

        return decide([refused if i in refuse else a for i, a in enumerate(attempts)], contract)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("regcache_deploy.contract.run.decide", decided)
        words = ["build", str(folder / "t.regcache"), "--engine", "onnxruntime", "--json", "-q"]
        words += ["--data", str(folder / "data"), "--max-drop", "100", "--min-speedup", "1e-6"]
        words += ["--seconds", "0.2", "--threads", "1", "--output", str(output)]
        assert main(words) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_another_way_is_kept_with_its_own_certificate(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = build(folder, tmp_path, capsys, refuse=[0, 1])
    assert found["kept"] == "way"
    kept = found["tried"][-1]
    assert kept["way"] in ("quantizer", "smoothed", "channels", "treated", "regcache_treated")
    assert found["images"] == {"judged_on": 12, "chosen_on": 12}
    place = tmp_path / "t-way" / "t-way.regcache"
    assert Path(found["path"]) == place
    report = verify_bundle(Bundle.open(place))
    report.check()
    assert report.images == 4  # those of the exported bundle's certificate
    plan = Plan.load(place.parent)
    assert plan.provenance["recipe"] == kept["way"]
    assert plan.provenance["recalibrated"]["images"] == 12
    assert plan.provenance["build"]["way"] == kept["way"]
    assert plan.linears.keys() == set(plan.encoder.linears())


def test_float_linears_without_regcache(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = frozenset({"blocks.1.mlp.fc2"})
    choice = FloatChoice(names, -0.1, within=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Candidates, "choose_layers", lambda *a: choice)
        found = build(folder, tmp_path, capsys, refuse=[0, 1, 2])
    assert found["kept"] == "mixed_plain"
    assert found["tried"][-1]["float_layers"] == list(names)
    place = tmp_path / "t-mixed_plain" / "t-mixed_plain.regcache"
    plan = Plan.load(place.parent)
    assert plan.regcache is None
    assert plan.linears.keys() == set(plan.encoder.linears()) - names
    verify_bundle(Bundle.open(place)).check()


def test_the_drop_is_judged_on_other_images(folder: Path) -> None:
    """What chooses a way is never looked at by the measurement, and the other way round."""
    found = other_ways(folder)
    select = {image.tobytes() for image in found.data.select}
    assert not select & {image.tobytes() for image in found.data.judge}
    assert found.tried[0].drop.n == len(found.data.select)


@pytest.mark.parametrize(
    ("baseline", "provenance", "name"),
    [
        (RepQViT(), {"baseline": "repqvit", "range_rule": "percentile", "options": {}}, "ranges"),
        (
            Naive(observer="percentile"),
            {"baseline": "naive", "options": {"observer": "percentile"}},
            "smoothed",
        ),
    ],
)
def test_a_kept_way_is_calibrated_again_by_its_own_rule(
    baseline: Baseline, provenance: dict[str, Any], name: str, tmp_path: Path
) -> None:
    encoder = tiny_encoder()
    images = torch.from_numpy(in_layout(noise(16, 3).numpy(), None, PREPROCESS))
    calibration = baseline.calibrate(encoder, encoder.embed(images))
    exported = provenance | {"recipe": "quantizer"}
    plan = make_plan(calibration, preprocess=PREPROCESS, provenance=exported)
    plan.save(tmp_path)
    write_bundle(plan, tmp_path / "t.regcache")
    ways = other_ways(tmp_path)
    (way,) = (way for way in ways.ways if way.name == name)
    kept = ways.plan(name, ways.calibrate(way))
    again = baseline_of(kept, calibration_of(kept))
    for rule in ("range_rule", "observer"):
        assert getattr(again, rule, None) == getattr(way.baseline, rule, None)
    assert getattr(way.baseline, "range_rule", "output_error") == "output_error"
