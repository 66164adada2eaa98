"""`regcache-export`, end to end on the embedded demo, and what it does with bad input."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from regcache_deploy.cli.main import export_main
from regcache_deploy.evaluation.deployed import run_engine
from regcache_engines import TextTower
from regcache_engines.bundle import Bundle
from regcache_export.bundle import write_bundle
from regcache_export.inspect import integer_gemms
from regcache_export.plan import Plan
from regcache_export.plan_beside import load_plan
from regcache_export.verify import verify_bundle
from tests.tiny_plans import tiny_plan

SMALL = ["--search-images", "96", "--calibration-images", "32", "--limit", "240", "-q"]
FIXED = ["--prefix-block", "2", "--prefix-count", "4", "--delete-count", "5"]


def export(arguments: Sequence[str], capsys: Any) -> dict[str, Any]:
    assert export_main([*arguments, "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


@pytest.mark.parametrize("baseline", ["naive", "ptq4vit", "repqvit"])
def test_demo_end_to_end(baseline: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    # PTQ4ViT's own search costs a hundred candidates per scale, each over all calibration rows
    good = ["--prefix-block", "2", "--prefix-count", "3", "--delete-count", "6"]
    fixed = ["--calibration-images", "8", *good] if baseline == "ptq4vit" else []
    result = export(["--baseline", baseline, "--output", str(out), *SMALL, *fixed], capsys)
    for key in [
        "model",
        "baseline",
        "sensitive_block",
        "sensitive_layer",
        "prefix_block_candidates",
        "prefix_block",
        "prefix_add_blocks",
        "prefix_count",
        "delete_block",
        "delete_count",
        "range_delete_count",
        "search_accuracy",
        "results_csv",
        "bundle",
        "accuracy",
        "n_eval",
    ]:
        assert key in result
    assert set(result["accuracy"]) == {
        "fp32",
        "baseline",
        "prefix_only",
        "delete_only",
        "saturate",
        "delete",
        "regcache",
        "recipe",
        "deployed",
    }
    assert result["n_eval"] == 240
    assert result["agreement"]["top1"] >= 0.995
    assert result["agreement"]["mean_cosine"] >= 0.9999
    assert Path(result["bundle"]).name == f"demo-{baseline}.regcache"
    bundle = Bundle.open(result["bundle"])
    plan = Plan.load(out)
    assert integer_gemms(bundle.model_path) == 4 * plan.encoder.depth
    assert bundle.manifest["accuracy"] == result["accuracy"]
    assert len(bundle.labels) == 100
    rows = Path(result["results_csv"]).read_text().splitlines()
    assert rows[0].startswith("stage,prefix_block,prefix_count")
    assert len(rows) > (1 if "--prefix-count" in fixed else 8)
    assert sorted(p.name for p in out.iterdir()) == [
        f"demo-{baseline}.regcache",
        "parts",
        "plan.json",
        "plan.safetensors",
        "plots",
        "result.json",
        "results.csv",
    ]


def test_same_input_gives_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = []
    for run in ("a", "b"):
        arguments = ["--baseline", "naive", "--output", str(tmp_path / run), *SMALL, *FIXED]
        models.append(Path(export(arguments, capsys)["bundle"]) / "model.onnx")
    assert models[0].read_bytes() == models[1].read_bytes()


def test_a_graph_that_differs_from_the_simulation_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = run_engine

    def perturbed(*arguments: Any, **keywords: Any) -> torch.Tensor:
        features = honest(*arguments, **keywords)
        return features + 0.5 * features.flip(0)

    monkeypatch.setattr("regcache_deploy.bundling.bundle.run_engine", perturbed)
    out = tmp_path / "run"
    plan = tiny_plan()
    earlier = write_bundle(plan, out / "demo-naive.regcache")
    plan.save(out)
    assert export_main(["--baseline", "naive", "--output", str(out), *SMALL, *FIXED]) == 6
    assert "kept as" in capsys.readouterr().err
    assert load_plan(Bundle.open(earlier)).encoder == plan.encoder
    assert (out / "demo-naive.rejected" / "model.onnx").is_file()


@pytest.mark.parametrize("where", ["run_engine", "certify_bundle"])
def test_an_error_behind_the_draft_leaves_none(
    where: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def no_memory(*arguments: Any, **keywords: Any) -> None:
        assert list(tmp_path.glob("*.unverified"))
        raise MemoryError("std::bad_alloc")

    monkeypatch.setattr(f"regcache_deploy.bundling.bundle.{where}", no_memory)
    words = ["--baseline", "naive", "--output", str(tmp_path), *SMALL, *FIXED]
    assert export_main(words) == 1
    assert "memory" in capsys.readouterr().err
    assert not list(tmp_path.glob("demo-naive.*"))


def test_the_plan_of_another_bundle_is_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_bundle(tiny_plan(), tmp_path / "other.regcache")
    tiny_plan().save(tmp_path)
    before = (tmp_path / "plan.json").read_bytes()
    words = ["--baseline", "naive", "--output", str(tmp_path), *SMALL, *FIXED]
    assert export_main(words) == 2
    assert "holds other.regcache with its plan beside it" in capsys.readouterr().err
    assert (tmp_path / "plan.json").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3


NOTHING = ["--prefix-count", "0", "--delete-count", "0"]
FEW = ["--search-images", "48", "--calibration-images", "16", "--limit", "60", "-q"]


def test_some_linears_stay_in_float(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Naive alone is broken by the planted block; with that one in float it is not."""
    words = ["--baseline", "naive", *FEW, *NOTHING, "--keep-float", "auto", "--budget", "0.05"]
    result = export([*words, "--output", str(tmp_path)], capsys)
    assert result["in_float"] == ["blocks.2.mlp.fc2"]
    assert result["accuracy"]["deployed"] >= result["accuracy"]["fp32"] - 0.05
    bundle = Bundle.open(result["bundle"])
    assert integer_gemms(bundle.model_path) == 23
    rows = {row["tensor"]: row for row in bundle.manifest["provenance"]["quantizers"]}
    assert rows["blocks.2.mlp.fc2.weight"]["graph"] == "float"


def test_linears_are_ranked_where_the_sensitive_layer_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Block k is the user's; which linears go into float is measured all the same."""
    words = ["--baseline", "naive", *FEW, *NOTHING, "--keep-float", "auto", "--budget", "0.05"]
    words += ["--sensitive-layer", "blocks.1.fc2", "--output", str(tmp_path)]
    result = export(words, capsys)
    assert result["sensitive_layer"] == "blocks.1.mlp.fc2"
    assert result["in_float"] == ["blocks.2.mlp.fc2"]
    assert not [line for line in result["warnings"] if "is not met" in line]


def test_a_budget_that_float_linears_cannot_keep_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Deleting 30 of 36 patches is not mended by any linear in float."""
    words = ["--baseline", "naive", *FEW, "--prefix-count", "0", "--delete-count", "30"]
    words += ["--keep-float", "auto", "--budget", "0.01", "--output", str(tmp_path)]
    result = export(words, capsys)
    assert len(result["in_float"]) == 24
    assert [line for line in result["warnings"] if "--budget 0.01 is not met" in line]


def test_strict_paper_runs_what_was_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--baseline", "repqvit", "--strict-paper", *FEW, *FIXED]
    result = export([*words, "--output", str(tmp_path)], capsys)
    assert result["differences"] == []
    agreement = result["agreement"]
    assert agreement["mean_cosine"] >= 0.9999 or agreement["control"] < 0.9999
    bundle = Bundle.open(result["bundle"])
    assert bundle.manifest["strict_paper"] is True
    table = bundle.manifest["provenance"]["quantizers"]
    parts = {f"{layer}.{role}" for layer in ("patch_embed", "proj") for role in ("input", "weight")}
    assert {r["tensor"] for r in table if not r["equal"]} == parts
    report = verify_bundle(bundle)
    assert (report.problem, report.same_codes) == (None, 1)
    assert report.levels > 0


@pytest.mark.slow
def test_folder_of_images_with_random_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Structure only: `--pretrained random` is labelled as such, and finds nothing to mend."""
    generator = torch.Generator().manual_seed(0)
    for index in range(12):
        pixels = torch.randint(0, 256, (40, 56, 3), dtype=torch.uint8, generator=generator)
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{index}.png")
    arguments = ["--model", "ViT-S-32-alt", "--pretrained", "random:7", "--baseline", "naive"]
    arguments += ["--data", str(tmp_path), "--output", str(tmp_path / "run"), "-q"]
    arguments += [
        "--calibration-images",
        "4",
        "--search-images",
        "6",
        *FIXED,
        "--templates",
        "simple",
    ]
    result = export(arguments, capsys)
    assert "random weights (seed 7)" in result["caution"]
    assert result["metric"] == "cosine"
    assert (result["prefix_count"], result["delete_count"]) == (4, 5)
    bundle = Bundle.open(result["bundle"])
    assert bundle.manifest["created"]
    if importlib.util.find_spec("tokenizers") is None:
        assert "needs tokenizers" in bundle.manifest["text"]["left_out"]
    else:
        with TextTower(bundle, threads=1) as tower:
            assert tower.embed(["a photo of a dog"]).shape == (1, 256)
            assert len(tower.config.templates) == 7


def one_image(folder: Path) -> None:
    Image.new("RGB", (32, 32)).save(folder / "a.png")


def corrupt(folder: Path) -> None:
    for index in range(9):
        Image.new("RGB", (32, 32), (index, 0, 0)).save(folder / f"{index}.jpg")
    (folder / "broken.jpg").write_bytes((folder / "0.jpg").read_bytes()[:200])


@pytest.mark.parametrize(
    ("arguments", "prepare", "code", "message"),
    [
        (["--baseline", "foo"], None, 2, "naive, ptq4vit, repqvit"),
        (["--model", "ViT-Q-16", "--data", "demo"], None, 3, "unknown model"),
        (["--model", "ViT-B-32", "--data", "demo"], None, 2, "needs --pretrained"),
        (["--model", "ViT-B-32"], None, 2, "needs --data DIR"),
        (["--prefix-count", "1000"], None, 2, "out of range"),
        (["--prefix-count", "-1"], None, 2, "out of range"),
        (["--delete-count", "36"], None, 2, "at least one must stay"),
        (["--prefix-block", "99"], None, 2, "blocks 0"),
        (["--keep-float", "blocks.77.fc2"], None, 2, "blocks 0..5"),
        (["--keep-float", "blocks.2.conv"], None, 2, "blocks.I.ROLE"),
        (["--observer", "mse"], None, 2, "--baseline naive"),
        (["--strict-paper", "--target", "onnxruntime"], None, 2, "--target onnx"),
        (["--strict-paper", "--balance"], None, 2, "--balance"),
        (["--data", "{tmp}/none"], None, 4, "there is no folder"),
        (["--data", "{tmp}"], None, 4, "image"),
        (["--data", "{tmp}"], one_image, 4, "image"),
        (["--data", "{tmp}"], corrupt, 4, "broken.jpg"),
        (["--bits", "W9A8"], None, 2, "--bits"),
    ],
)
def test_bad_input_ends_in_one_line_and_leaves_nothing(
    arguments: list[str], prepare: Any, code: int, message: str, tmp_path: Path, capsys: Any
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    if prepare:
        prepare(data)
    out = tmp_path / "run"
    filled = [a.format(tmp=data) for a in arguments]
    assert export_main([*filled, "--output", str(out), "-q"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    errors = [line for line in captured.err.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in captured.err
    assert not out.exists() or not list(out.iterdir())
