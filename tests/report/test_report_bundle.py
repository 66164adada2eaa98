"""The page of an export: the answer, speed, error by layer, contract, how to run it, Triton."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from regcache_deploy.bench.results import write_rows
from regcache_deploy.bundling.certify import certify_bundle
from regcache_deploy.cli.main import main
from regcache_deploy.errors import BundleError, DataError
from regcache_deploy.quantization.plan import calibration_of
from regcache_deploy.report.answer import accuracy_card, file_card, speed_card
from regcache_deploy.report.block_errors import kept_block_errors, measure_block_errors
from regcache_deploy.report.bundle_plots import pareto, pareto_front
from regcache_deploy.report.bundle_sections import python_snippet
from regcache_deploy.report.document import load_document, read_rows
from regcache_deploy.report.drawing import DARK, INK, draw_svg
from regcache_deploy.report.measured import own_rows, speeds
from regcache_deploy.report.speed_section import pareto_points, speed
from regcache_deploy.work.progress import Reporter
from regcache_engines.bundle import Bundle
from regcache_export.bundle import write_bundle
from regcache_export.targets import GraphOptions
from tests.tiny_plans import SPEC, tiny_plan

PAIR = {"difference": -0.2, "low": -0.4, "high": 0.1, "p_value": 0.5, "lost": 3, "won": 1, "n": 9}
ROW = {
    "bundle": "t",
    "precision": "int8",
    "engine": "onnxruntime",
    "threads": "2",
    "infer_batch_size": "1",
    "infer_step_time": "2.0",
    "p99_ms": "3.0",
    "cpu": "A CPU",
    "cpu_flags": "avx2",
    "cores": "2",
    "load": "1.75",
}
FASTER = {"speedup": "2.5", "speedup_low": "2.4", "speedup_high": "2.6", "speedup_over": "fp32"}


def result(**changes):
    return {
        "model": "tiny",
        "baseline": "naive",
        "bits": "W8A8",
        "caution": "random weights",
        "sensitive_block": 1,
        "sensitive_layer": "blocks.1.mlp.fc2",
        "prefix_count": 3,
        "prefix_block": 1,
        "prefix_add_blocks": [1, 2],
        "delete_block": 1,
        "delete_count": 4,
        "search_accuracy": 0.7,
        "search_metric": "top1",
        "metric": "top1",
        "n_search": 12,
        "n_eval": 34,
        "accuracy": {"fp32": 0.9, "regcache": 0.89, "deployed": 0.898},
        "paired": {"regcache": PAIR, "deployed": PAIR},
        "agreement": {"mean_cosine": 0.99999, "min_cosine": 0.9999, "n": 34},
        "bundle": "t.regcache",
        "warnings": [],
    } | changes


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """What an export leaves, with a benchmark beside it (made-up figures, random weights)."""
    folder = tmp_path_factory.mktemp("run")
    plan = tiny_plan()
    plan.save(folder)
    write_bundle(plan, folder / "t.regcache")
    pixels = torch.randint(0, 256, (3, *SPEC.image_size, 3), dtype=torch.uint8)
    certify_bundle(folder / "t.regcache", plan, GraphOptions(), calibration_of(plan), pixels)
    (folder / "result.json").write_text(json.dumps(result()))
    rows = [ROW | {"precision": "fp32", "infer_step_time": "5.0"}, ROW | FASTER]
    rows.append({"bundle": "t", "precision": "int8", "engine": "cuda", "reason": "no GPU here"})
    columns = list(rows[1] | {"reason": ""})
    lines = [",".join(columns)] + [",".join(r.get(c, "") for c in columns) for r in rows]
    (folder / "bench-machine.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_page_of_an_export(run_folder, tmp_path, capsys):
    page = tmp_path / "p.html"
    triton = ["--triton", str(tmp_path / "models"), "--json"]
    assert main(["report", str(run_folder), "--output", str(page), *triton]) == 0
    written = json.loads(capsys.readouterr().out)
    assert written == {"report": str(page), "triton": str(tmp_path / "models" / "t")}
    text = page.read_text(encoding="utf-8")
    anchors = ["answer", "accuracy", "speed", "decision", "errors", "contract", "run"]
    places = [text.index(f'<section id="{name}"') for name in [*anchors, "certificate"]]
    assert places == sorted(places)
    for words in ("yes, 2.50×", "89.80 %", "no GPU here", "image [batch, 3, 32, 24]", "load 1.75"):
        assert words in text
    assert "The machine was busy" in text
    assert text.count("<img ") == 2  # latency against accuracy, error by layer
    assert "http" not in text.split("<main>")[1].replace("model_repository", "")
    assert main(["report", str(run_folder), "--output", str(page), "--no-layers"]) == 0
    assert 'id="errors"' not in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("pair", "word", "mood"),
    [
        ({"difference": -0.2, "low": -0.5, "high": 0.1}, "yes", "good"),
        ({"difference": -0.2, "low": -0.6, "high": 0.1}, "probably", "open"),
        ({"difference": -0.6, "low": -0.9, "high": -0.4}, "probably not", "bad"),
        ({"difference": -2.0, "low": -3.0, "high": -1.0}, "no", "bad"),
    ],
)
def test_accuracy_answer(pair, word, mood):
    card = accuracy_card(result(paired={"deployed": PAIR | pair}))
    assert (card.answer, card.mood) == (word, mood)
    assert "34 held-out images" in card.detail
    wide = {"decision": {"contract": {"max_drop": 3.0}}}
    assert accuracy_card(result(paired={"deployed": PAIR | pair}) | wide).answer == "yes"


def test_accuracy_answer_without_labels_or_figures():
    card = accuracy_card(result(metric="cosine", accuracy={"fp32": 1.0, "regcache": 0.995}))
    assert card.answer == "close"
    assert "not accuracy" in card.detail
    assert accuracy_card(result(accuracy={"fp32": 0.9})).answer == "not measured"


@pytest.mark.parametrize(
    ("ratio", "word", "mood"),
    [
        ((2.0, 1.9, 2.1), "yes, 2.00×", "good"),
        ((1.1, 0.9, 1.3), "maybe, 1.10×", "open"),
        ((0.8, 0.7, 0.9), "no, 0.80×", "bad"),
    ],
)
def test_speed_answer(ratio, word, mood):
    names = ("speedup", "speedup_low", "speedup_high")
    row = ROW | FASTER | dict(zip(names, map(str, ratio), strict=True))
    card = speed_card(result(bench=[ROW, row]))
    assert (card.answer, card.mood) == (word, mood)
    assert speed_card({}).answer == "not measured"


@pytest.mark.parametrize(
    ("others", "answer", "over"),
    [
        ([{"precision": "fp16", "speedup": "9"}], "yes, 2.50×", "the float file"),
        ([{"precision": "fp32", "speedup": "9", "speedup_over": "int8"}], "yes, 2.50×", "float"),
        ([{"bundle": "another", "speedup": "9"}], "yes, 2.50×", "the float file"),
        ([{"speedup": "9", "speedup_over": "fp16"}], "yes, 2.50×", "the float file"),
    ],
)
def test_speed_answer_is_int8_over_float_of_this_bundle(others, answer, over):
    rows = [ROW | FASTER | {"speedup_high": "9.5"} | other for other in others]
    card = speed_card(result(bench=[*rows, ROW | FASTER]))
    assert card.answer == answer
    assert over in card.detail
    assert "the best of" not in card.detail
    alone = speed_card(result(bench=rows))
    half = others[0].get("speedup_over") == "fp16"
    assert alone.answer == ("yes, 9.00×" if half else "not measured")
    assert ("INT8 over the FP16 file" in alone.detail) is half


def test_bundles_in_one_csv_stay_apart(tmp_path):
    other = ROW | {"bundle": "another", "infer_step_time": "1.0"}
    document = result(bench=[ROW, other, ROW | {"precision": "fp32"}])
    assert [p["label"] for p in pareto_points(document)] == [
        f"{name}, onnxruntime, threads 2" for name in ("INT8", "FP32")
    ]
    made = speed(tmp_path, document)
    assert made is not None
    names = [row[0] for row in made.tables[-1].rows]
    assert names == [
        "t, int8, onnxruntime",
        "another, int8, onnxruntime",
        "t, fp32, onnxruntime",
    ]


def test_the_last_measurement_leads_and_counts_once(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(result()))
    rows = [ROW | FASTER | {"threads": threads} for threads in ("2", "16")]
    write_rows(tmp_path / "bench-a.csv", rows, {"measured_at": "2026-01-01T00:00Z"})
    new = ROW | FASTER | {"speedup": "3.5"}
    write_rows(tmp_path / "bench-b.csv", [new], {"measured_at": "2026-02-01T00:00Z"})
    document = load_document(tmp_path, [tmp_path / "bench-b.csv"])
    assert [(s.value, s.threads) for s in speeds(document)] == [(3.5, "2"), (2.5, "2"), (2.5, "16")]


def test_a_ratio_is_taken_of_its_own_float_file():
    old, new = ({"versions": f"onnxruntime=1.{minor}"} for minor in (22, 23))
    rows = []
    for versions, ms in ((old, "10.0"), (new, "5.0")):
        rows += [ROW | versions | {"precision": "fp32", "infer_step_time": ms}]
        rows += [ROW | versions | FASTER | {"infer_step_time": "1.0"}]
    points = pareto_points(result(bench=rows))
    assert [p["ms"] for p in points if p["ours"]] == [4.0, 2.0]


def test_rows_of_another_bundle_alone_are_named(tmp_path):
    made = speed(tmp_path, result(bench=[ROW | {"bundle": "another"}]))
    assert made is not None
    assert [row[0] for row in made.tables[-1].rows] == ["another, int8, onnxruntime"]


@pytest.mark.parametrize(
    ("overs", "head"),
    [(["fp32", "fp32"], "faster than fp32 [95 %]"), (["fp32", "fp16"], "faster [95 %]")],
)
def test_the_column_of_ratios_names_what_they_are_over(tmp_path, overs, head):
    rows = [ROW | FASTER | {"speedup_over": over} for over in overs]
    made = speed(tmp_path, result(bench=rows))
    assert made is not None
    assert made.tables[-1].columns[-1] == head


def test_file_answer():
    assert file_card(result()).answer == "not decided"
    assert "regcache build t.regcache" in file_card(result()).detail
    tried = [
        {"form": "int8", "keep": False, "reasons": ["too slow"]},
        {"form": "float", "keep": True, "reasons": ["loses nothing"]},
    ]
    found = {"kept": "float", "proven": True, "path": "x/f.regcache", "tried": tried}
    card = file_card(result(decision=found))
    assert card.answer == "float file"
    assert "x/f.regcache" in card.detail
    assert "INT8 as exported" in card.detail


def test_front_is_what_nothing_beats():
    points = [(3.0, 0.9), (1.0, 0.5), (2.0, 0.9), (2.0, 0.4), (4.0, 0.95), (5.0, 0.95)]
    assert pareto_front(points) == [1, 2, 4]


def test_points_come_from_peers_where_there_are_any():
    peers = [
        {"peer": "a", "title": "PyTorch", "b1_infer_step_time": "4", "b8_infer_step_time": "9"},
        {"peer": "b", "title": "ours, x", "b1_infer_step_time": "2", "mean_cosine": "0.9"},
        {"peer": "c", "title": "gone", "reason": "no"},
    ]
    points = pareto_points(result(bench=[*peers, ROW]))
    assert [(p["ms"], p["value"], p["ours"]) for p in points] == [(4, 1, False), (2, 0.9, True)]
    timed = pareto_points(result(bench=[ROW, ROW | {"precision": "fp32", "infer_step_time": "5"}]))
    assert [(p["ms"], p["value"]) for p in timed] == [(2.0, 0.898), (5.0, 0.9)]
    assert pareto_points(result(bench=[ROW], accuracy={"fp32": 0.9})) == []


def test_plots_are_readable_on_dark():
    points = [{"ms": 1.0, "value": 0.5, "ours": True}, {"ms": 2.0, "value": 0.6, "ours": False}]
    svg = draw_svg(lambda: pareto(points, "top1", 1)).decode()
    rule = f'[style*="fill: {INK}"] {{ fill: {DARK[INK]} !important }}'
    assert "@media (prefers-color-scheme: dark)" in svg
    assert rule in svg
    assert f"fill: {INK}" in svg.split("</style>", 1)[1]
    assert "fill: #ffffff" not in svg


def test_search_and_export_in_one_folder(tmp_path):
    search = result(accuracy={"fp32": 0.8}, paired={}) | {"plots": {}, "gain": {"found": True}}
    (tmp_path / "search.json").write_text(json.dumps(search))
    (tmp_path / "result.json").write_text(json.dumps(result()))
    both = load_document(tmp_path)
    assert both["accuracy"]["deployed"] == 0.898
    assert both["gain"] == {"found": True}
    told = {"warnings": ["w2"], "run": {"held_out_images": "of the export", "command": "b"}}
    made = result() | told | {"options": {"pretrained": "x"}}
    search |= {"warnings": ["w1"], "run": {"held_out_images": "of the search", "command": "a"}}
    (tmp_path / "search.json").write_text(json.dumps(search | {"options": {"pretrained": "x"}}))
    (tmp_path / "result.json").write_text(json.dumps(made))
    both = load_document(tmp_path)
    assert both["warnings"] == ["w1", "w2"]
    assert both["run"] == {"held_out_images": "of the export", "command": "a"}
    (tmp_path / "search.json").write_text(json.dumps(search | {"options": {"pretrained": "y"}}))
    assert "deployed" not in load_document(tmp_path)["accuracy"]  # other weights
    (tmp_path / "result.json").write_text(json.dumps(result(prefix_count=1)))
    other = load_document(tmp_path)
    assert "deployed" not in other["accuracy"]
    assert "another choice" in other["warnings"][-1]


def test_figures_of_another_bundle_are_left_out(tmp_path):
    """By the graph's hash, or where a file is older than that, by the bundle's name."""
    mine, other = "1" * 64, "2" * 64
    bundle = tmp_path / "mine.regcache"
    bundle.mkdir()
    manifest = {"files": {"model.onnx": {"sha256": mine}}}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "result.json").write_text(json.dumps(result(bundle=f"runs/{bundle.name}")))
    kept: dict[str, dict[str, Any]] = {
        "a": {"bundle": "x/other.regcache", "model_sha256": other},
        "b": {"bundle": "x/mine.regcache", "model_sha256": other},  # before it was exported again
        "c": {"bundle": "x/renamed.regcache", "model_sha256": mine},
        "d": {"bundle": "x/mine.regcache"},
        "e": {"bundle": "x/other.regcache"},
        "f": {"bundle": "x/mine.regcache", "results": ["c"]},  # c, kept by an older release
    }
    for name, found in kept.items():
        records = {"results": [name], "reference": "fp32", "name": name} | found
        (tmp_path / f"eval-{name}.json").write_text(json.dumps(records))
        (tmp_path / f"{name}.decision.json").write_text(json.dumps({"name": name} | found))
    rows = [ROW | {"bundle": "mine", "model_sha256": digest} for digest in (mine, other)]
    write_rows(tmp_path / "bench.csv", [*rows, ROW | {"bundle": "mine"}], {})
    document = load_document(tmp_path)
    assert [each["name"] for each in document["evaluations"]] == ["c", "d"]
    assert document["decision"]["name"] == "c"
    assert [row.get("model_sha256") for row in own_rows(document)] == [mine, None]
    assert "6 decisions or evaluations in this folder are of another" in document["warnings"][-2]
    assert "of an older file of this bundle are left out: 1" in document["warnings"][-1]
    assert [row.get("model_sha256") for row in document["bench"]] == [mine, None]
    renamed = load_document(tmp_path, bundle=tmp_path / "other.regcache")
    assert [each["name"] for each in renamed["evaluations"]] == ["a", "e"]


def test_rows_that_are_none(tmp_path):
    for name, text in {"a.csv": "x,y\n1,2\n", "b.json": "[]", "c.json": "{"}.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError):
            read_rows(tmp_path / name)
    with pytest.raises(DataError):
        read_rows(tmp_path / "none.csv")


def test_block_errors_follow_the_simulation(run_folder):
    found = measure_block_errors(Bundle.open(run_folder / "t.regcache"))
    assert found["images"] == 3
    assert len(found["simulated"]) == len(found["deployed"]) == SPEC.depth
    assert found["simulated"] == pytest.approx(found["deployed"], rel=0.02)
    assert 0 < found["simulated"][-1] < 0.5
    assert set(found["alone"]) == set(SPEC.linears())


def test_block_errors_are_measured_once(run_folder, tmp_path, monkeypatch):
    bundle = Bundle.open(run_folder / "t.regcache")
    steps = []

    def measured(opened, place, advance, *more):
        steps.append(place)
        return measure_block_errors(opened, run_folder, advance, *more)

    monkeypatch.setattr("regcache_deploy.report.block_errors.measure_block_errors", measured)
    quiet = Reporter(quiet=True)
    first = kept_block_errors(bundle, tmp_path, quiet)
    assert kept_block_errors(bundle, tmp_path, quiet) == first
    assert len(steps) == 1
    (tmp_path / "layers.json").write_text('{"of": {"model.onnx": "another"}, "errors": {}}')
    assert kept_block_errors(bundle, tmp_path, quiet) == first
    assert len(steps) == 2


def test_a_second_page_needs_no_torch(run_folder, tmp_path, monkeypatch):
    words = ["report", str(run_folder), "--output", str(tmp_path / "p.html"), "--threads", "1"]
    assert main(words) == 0

    def refuse(module, extra):
        raise AssertionError(f"{module} was to be imported")

    monkeypatch.setattr("regcache_deploy.compat.require", refuse)
    assert main(words) == 0
    assert '<section id="errors"' in (tmp_path / "p.html").read_text(encoding="utf-8")
    assert main([*words[:-1], "0"]) == 2


def test_block_errors_of_another_plan_are_refused(run_folder, tmp_path, capsys):
    other = tiny_plan()
    other.provenance["model"] = "another"
    other.save(tmp_path)
    with pytest.raises(BundleError, match="another bundle"):
        measure_block_errors(Bundle.open(run_folder / "t.regcache"), tmp_path)


@pytest.mark.parametrize("pixels", [None, "nchw", "nhwc"])
def test_python_listing_runs(tmp_path, capsys, monkeypatch, pixels):
    bundle = Bundle.open(
        write_bundle(tiny_plan(), tmp_path / "b.regcache", options=GraphOptions(pixels=pixels))
    )
    picture = np.random.default_rng(0).integers(0, 255, (*SPEC.image_size, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "x.png")
    monkeypatch.setattr(sys, "argv", ["program", str(tmp_path / "x.png")])
    exec(python_snippet(str(bundle.path), head=True), {})
    assert capsys.readouterr().out.split()[0] in bundle.labels


def test_several_bundles_in_a_run_are_named(run_folder, tmp_path, capsys):
    (tmp_path / "result.json").write_text(json.dumps(result()))
    assert main(["report", str(tmp_path), "--triton", str(tmp_path / "m")]) == 2
    assert "no bundle" in capsys.readouterr().err
    for name in ("a", "b"):
        (tmp_path / f"{name}.regcache").mkdir()
    assert main(["report", str(tmp_path)]) == 2
    assert "a.regcache, b.regcache" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()
