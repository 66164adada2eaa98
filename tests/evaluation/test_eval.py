"""`regcache eval`: runners, data, statistics, and the JSON that users read."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from regcache_deploy.cli.main import main
from regcache_deploy.errors import BundleError, ConfigError, DataError
from regcache_deploy.evaluation import rows
from regcache_deploy.evaluation.bundle_evaluation import Session
from regcache_deploy.evaluation.metrics import (
    classification_metrics,
    fidelity_metrics,
    resolution_line,
)
from regcache_deploy.evaluation.probes import knn_logits, linear_probe_logits
from regcache_deploy.evaluation.runners import parse_runners
from regcache_deploy.quantization.plan import calibration_of, make_plan
from regcache_deploy.work.progress import Reporter
from regcache_engines.bundle import Bundle
from regcache_export.bundle import write_bundle
from regcache_export.plan import Plan
from tests.tiny_plans import naive_calibration, tiny_encoder, tiny_images, tiny_plan, tiny_regcache

ALL = "fp32,simulated,onnxruntime"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A plan and its bundle (random weights), and twelve images of three of its four classes."""
    folder = tmp_path_factory.mktemp("run")
    plan = tiny_plan()
    plan.save(folder)
    write_bundle(plan, folder / "t.regcache")
    draw = np.random.default_rng(0)
    for name in ("cat", "dog", "four"):
        (folder / "data" / name).mkdir(parents=True)
        for index in range(4):
            pixels = draw.integers(0, 255, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "data" / name / f"{index}.png")
    return folder


def run_json(capsys, *arguments):
    code = main(["eval", *map(str, arguments), "--json", "-q"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(captured.out)


def test_calibration_survives_plan_and_back(tmp_path):
    encoder = tiny_encoder()
    calibration = naive_calibration(encoder, tiny_regcache(encoder))
    assert calibration.regcache is not None
    make_plan(calibration, regcache_config=calibration.regcache.config).save(tmp_path)
    again = calibration_of(Plan.load(tmp_path))
    images = tiny_images(3)
    want = calibration.encoder(images, calibration.numerics(), calibration.regcache)
    assert torch.equal(again.encoder(images, again.numerics(), again.regcache), want)


def test_all_runners_on_the_same_images(run_folder, capsys, tmp_path):
    table = tmp_path / "records.csv"
    found = run_json(
        capsys,
        run_folder / "t.regcache",
        "--on",
        ALL,
        "--data",
        run_folder / "data",
        "--csv",
        table,
    )
    zero_shot = [r for r in found["results"] if r["task"] == "zeroshot_classification"]
    assert [r["on"] for r in zero_shot] == ALL.split(",")
    assert {"acc1", "mean_per_class_recall"} <= zero_shot[0]["metrics"].keys()
    assert all(r["n"] == 12 for r in found["results"])
    assert zero_shot[0]["paired"] is None
    assert zero_shot[2]["paired"]["n"] == 12
    fidelity = {r["on"]: r["metrics"] for r in found["results"] if r["task"] == "fidelity"}
    assert fidelity.keys() == {"simulated", "onnxruntime"}
    simulated, deployed = fidelity["simulated"], fidelity["onnxruntime"]
    assert 0.5 < simulated["mean_cosine"] < 0.9999, "quantization must show"
    assert deployed["mean_cosine"] == pytest.approx(simulated["mean_cosine"], abs=1e-4)
    rows = list(csv.DictReader(table.open()))
    assert len(rows) == len(found["results"])
    assert rows[0]["acc1"] == str(zero_shot[0]["metrics"]["acc1"])


def test_a_table_goes_into_a_folder_that_is_not_there_yet(run_folder, capsys, tmp_path):
    table = tmp_path / "new" / "folder" / "x.csv"
    words = [run_folder / "t.regcache", "--data", run_folder / "data", "--csv", table]
    found = run_json(capsys, *words)
    assert len(list(csv.DictReader(table.open()))) == len(found["results"])


def test_results_are_printed_though_the_table_fails(run_folder, capsys, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device", "x.csv")

    monkeypatch.setattr("regcache_deploy.report.evaluation.write_csv", full)
    words = [str(run_folder / "t.regcache"), "--data", str(run_folder / "data"), "--json", "-q"]
    assert main(["eval", *words, "--csv", str(tmp_path / "x.csv")]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["results"]
    assert "No space left on device" in captured.err


def test_fidelity_needs_no_classes(run_folder, capsys, tmp_path):
    shutil.copytree(run_folder / "data" / "cat", tmp_path / "data" / "misspelt")
    shutil.copytree(run_folder / "data" / "dog", tmp_path / "data" / "dog")
    words = [run_folder / "t.regcache", "--on", "fp32,onnxruntime", "--data", tmp_path / "data"]
    found = run_json(capsys, *words, "--task", "fidelity")
    assert [(r["task"], r["n"]) for r in found["results"]] == [("fidelity", 8)]
    assert main(["eval", *map(str, words), "-q"]) == DataError.exit_code
    assert "matches none of the 4 classes" in capsys.readouterr().err


def test_single_images(run_folder, capsys):
    files = [run_folder / "data" / "cat" / "0.png", run_folder / "data" / "dog" / "1.png"]
    found = run_json(
        capsys, run_folder / "t.regcache", "--on", "onnxruntime", "--images", *files, "--top", "2"
    )
    assert [r["image"] for r in found["results"]] == [str(f) for f in files]
    for result in found["results"]:
        assert len(result["top"]) == 2
        first, second = result["top"]
        assert first["score"] >= second["score"] >= 0
        assert first["label"] == ("cat", "dog", "été", "four")[first["index"]]


def test_images_and_folder_agree(run_folder, capsys):
    files = sorted((run_folder / "data").glob("*/*.png"))
    single = run_json(capsys, run_folder / "t.regcache", "--images", *files)["results"]
    names = {"cat": 0, "dog": 1, "four": 3}
    hits = [
        r["top"][0]["index"] == names[f.parent.name] for r, f in zip(single, files, strict=True)
    ]
    whole = run_json(capsys, run_folder / "t.regcache", "--data", run_folder / "data")["results"]
    assert whole[0]["metrics"]["acc1"] == pytest.approx(np.mean(hits))


def test_knn_and_probe_run_on_features_alone(run_folder, capsys, tmp_path):
    data = run_folder / "data"
    copies = shutil.copytree(data, tmp_path / "copies")
    for task in ("knn", "linear_probe"):
        words = ("--data", data, "--task", task, "--train-data", copies)
        found = run_json(capsys, run_folder / "t.regcache", *words)
        # copies of the images themselves are in the training set
        assert found["results"][0]["metrics"]["acc1"] == 1.0, task


@pytest.mark.parametrize("form", ["same", "list", "linked", "shard"])
def test_a_probe_does_not_learn_the_answers(form, run_folder, capsys, tmp_path):
    data = run_folder / "data"
    train = {"same": data, "list": tmp_path / "train.txt"}.get(form, tmp_path / "linked")
    if form == "shard":
        data, train = tmp_path, tmp_path / "0.tar"
        (tmp_path / "classnames.txt").write_text("cat\ndog\nfour\n")
        with tarfile.open(train, "w") as archive:
            for index, file in enumerate(sorted((run_folder / "data").glob("*/*.png"))):
                archive.add(file, f"{index}.png")
                label = tarfile.TarInfo(f"{index}.cls")
                label.size = 1
                archive.addfile(label, io.BytesIO(b"%d" % (index // 4)))
    elif form == "list":
        files = [f"{file}\t{file.parent.name}" for file in data.glob("*/*.png")]
        train.write_text("\n".join(files))
    elif form == "linked":
        for file in data.glob("*/*.png"):
            (train / file.parent.name).mkdir(parents=True, exist_ok=True)
            (train / file.parent.name / file.name).symlink_to(file)
    words = ["eval", run_folder / "t.regcache", "--data", data, "--train-data", train, "-q"]
    for task in ("knn", "linear_probe"):
        assert main([*map(str, words), "--task", task]) == 2
        assert "would know the answers" in capsys.readouterr().err


def test_records_of_folders_of_one_name_stand_beside_each_other(run_folder, capsys, tmp_path):
    home = tmp_path / "run"
    shutil.copytree(run_folder, home, ignore=shutil.ignore_patterns("eval-*.json"))
    places = [tmp_path / "a" / "val", tmp_path / "b" / "val", tmp_path / "猫", tmp_path / "犬"]
    for place in places:
        shutil.copytree(home / "data", place)
        for _ in range(2):  # the same data replaces its own
            run_json(capsys, home / "t.regcache", "--data", place)
    kept = [json.loads(file.read_text()) for file in home.glob("eval-*.json")]
    assert sorted(found["data"] for found in kept) == sorted(map(str, places))
    digest = Bundle.open(home / "t.regcache").manifest["files"]["model.onnx"]["sha256"]
    assert {found["model_sha256"] for found in kept} == {digest}


def test_a_look_at_fewer_runners_or_images_replaces_no_comparison(run_folder, capsys, tmp_path):
    home = tmp_path / "run"
    shutil.copytree(run_folder, home, ignore=shutil.ignore_patterns("eval-*.json"))
    words = (home / "t.regcache", "--data", run_folder / "data", "--on")
    for on, more in (
        ("fp32,onnxruntime", ()),
        ("onnxruntime", ()),
        ("fp32,onnxruntime", ("--limit", 4)),
        ("fp32,onnxruntime", ()),
    ):
        run_json(capsys, *words, on, *more)
    kept = [json.loads(file.read_text()) for file in home.glob("eval-*.json")]
    whole = max(record["n"] for found in kept for record in found["results"])
    found = sorted((len(each["on"]), each["results"][0]["n"]) for each in kept)
    assert found == [(1, whole), (2, 4), (2, whole)]


def test_a_place_that_is_no_utf_8_has_a_csv(run_folder, capsys, tmp_path):
    place = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        shutil.copytree(run_folder / "data", place)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    run_json(capsys, run_folder / "t.regcache", "--data", place, "--csv", tmp_path / "x.csv")
    assert "caf\\udce9" in (tmp_path / "x.csv").read_text()


def test_classes_that_nothing_speaks_for_are_not_among_the_five():
    logits = np.full((2, 9), -np.inf)
    logits[:, 7] = 1.0
    assert classification_metrics(logits, np.array([3, 7]))["acc5"] == 0.5


def test_transfer_is_one_table(run_folder, capsys, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run_folder / "data" / "cat", other / "cat")
    shutil.copytree(run_folder / "data" / "dog", other / "dog")
    found = run_json(
        capsys, run_folder / "t.regcache", "--data", run_folder / "data", "--transfer", other
    )
    assert [r["dataset"] for r in found["results"]] == [str(run_folder / "data"), str(other)]


def test_a_model_that_was_trained_on_says_so(monkeypatch):
    """The text tower of a checkpoint that was written anew, with the bundle's old image tower."""
    asked = []

    def load_model(name, pretrained, image_size, templates):
        asked.append((name, pretrained, image_size, templates))
        return SimpleNamespace(weights_sha256=lambda: "b")

    monkeypatch.setattr("regcache_deploy.encoders.load.load_model", load_model)
    for made_of, told in (("a", 1), ("b", 0), (None, 0)):
        session = Session(Path("t.regcache"), ("fp32",), Reporter(quiet=True))
        provenance = {"model": "ViT-B-16", "pretrained": "x.pt", "options": {"img_size": "32x48"}}
        provenance |= {"weights_sha256": made_of} if made_of else {}
        vars(session)["bundle"] = SimpleNamespace(manifest={"provenance": provenance})
        assert session.model.weights_sha256() == "b"
        assert len(session.warnings) == told
        assert all("other weights than this bundle was made from" in w for w in session.warnings)
    assert asked == [("ViT-B-16", "x.pt", (32, 48), "openai")] * 3


def test_retrieval_is_compared_by_image(run_folder, tmp_path):
    """Two captions an image: three images are three, not six."""
    files = sorted((run_folder / "data").glob("*/1.png"))
    document = {
        "images": [{"id": i, "file_name": str(f)} for i, f in enumerate(files)],
        "annotations": [{"image_id": i % 3, "caption": f"text {i}"} for i in range(6)],
    }
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps(document))
    session = Session(
        run_folder / "t.regcache", ("fp32", "onnxruntime"), Reporter(quiet=True), batch_size=2
    )
    with session:
        width = session.bundle.text_features.shape[1]
        session.__dict__["model"] = SimpleNamespace(
            name="tiny", text_features=lambda texts: torch.randn(len(texts), width)
        )
        first, second, _ = session.retrieve(run_folder, captions)
    assert first.paired is None
    assert second.paired is not None
    assert second.paired.n == second.n == 3
    recall = [r.metrics["image_retrieval_recall@1"] for r in (first, second)]
    assert second.paired.difference == pytest.approx(100 * (recall[1] - recall[0]))
    assert "captions on balance" in str(second.resolution)


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (["--images", "nowhere.png"], 4, "no image nowhere.png"),
        (["--on", "tensorflow", "--data", "x"], 2, "unknown: tensorflow"),
        (["--on", "fp32,fp32", "--data", "x"], 2, "one is twice"),
        ([], 2, "either --images FILE... or --data"),
        (["--data", "nowhere"], 4, "no folder nowhere"),
        (["--data", "torchvision:cifar10:/nowhere"], 4, "is not under /nowhere"),
        (["--data", "torchvision:mnist:/x"], 2, "NAME one of"),
        (["--data", "demo", "--limit", "0"], 2, "--limit 0"),
        (["--data", "demo", "--seed=-1"], 2, "--seed -1 is out of range: take 0 to 4294967295"),
        (["--data", "demo", "--seed", "4294967296"], 2, "--seed 4294967296"),
        (["--data", "demo", "--csv", "."], 2, "--csv . is a folder"),
        (["--data", "demo", "--csv", "/dev/null/x.csv"], 2, "/dev/null is no folder"),
        (["--images", "x.png", "--csv", "x.csv"], 2, "--csv goes with --data"),
        (["--images", "x.png", "--task", "knn"], 2, "--task goes with --data"),
        (["--images", "x.png", "--limit", "3"], 2, "--limit goes with --data"),
        (["--data", "demo", "--train-data", "x"], 2, "goes with --task knn or linear_probe"),
        (["--data", "demo", "--captions", "x"], 2, "--captions goes with --task retrieval"),
        (["--data", "demo", "--top", "2"], 2, "--top goes with --images"),
        (["--data", "demo", "--task", "instances", "--head", "x"], 2, "--head goes with --task"),
        (["--data", "demo", "--task", "knn", "--templates", "x"], 2, "goes with --task auto"),
    ],
)
def test_mistakes_end_in_one_line(run_folder, capsys, change, code, message):
    assert main(["eval", str(run_folder / "t.regcache"), *change, "-q"]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_misspelt_class_folder_is_an_error_and_no_smaller_set(run_folder, capsys, tmp_path):
    shutil.copytree(run_folder / "data", tmp_path / "data")
    (tmp_path / "data" / "dog").rename(tmp_path / "data" / "dgo")
    code = main(["eval", str(run_folder / "t.regcache"), "--data", str(tmp_path / "data"), "-q"])
    assert code == DataError.exit_code
    assert "'dgo' matches none of the 4 classes" in capsys.readouterr().err


def test_unreadable_image_is_an_error(run_folder, capsys, tmp_path):
    shutil.copytree(run_folder / "data", tmp_path / "data")
    path = tmp_path / "data" / "cat" / "0.png"
    path.write_bytes(path.read_bytes()[:60])
    code = main(["eval", str(run_folder / "t.regcache"), "--data", str(tmp_path / "data"), "-q"])
    assert code == DataError.exit_code
    assert "1 of 12 images" in capsys.readouterr().err


def test_the_plan_of_another_bundle_is_refused(run_folder, tmp_path, capsys):
    from dataclasses import replace

    replace(tiny_plan(), provenance={"model": "other"}).save(tmp_path)
    arguments = ["eval", str(run_folder / "t.regcache"), "--on", "fp32", "--data", "demo"]
    assert main([*arguments, "--plan", str(tmp_path)]) == BundleError.exit_code
    assert "belongs to another bundle" in capsys.readouterr().err
    assert main([*arguments, "--plan", str(tmp_path / "empty")]) == BundleError.exit_code
    assert "has no plan.json" in capsys.readouterr().err


def test_runner_names():
    assert parse_runners("simulated, fp32") == ("simulated", "fp32")
    with pytest.raises(ConfigError, match="empty"):
        parse_runners(",")


def test_classification_metrics_by_hand():
    logits = torch.tensor([[9.0, 1, 0, 0, 0, 0], [0, 2, 3, 0, 0, 0], [5, 4, 3, 2, 1, 0]])
    metrics = classification_metrics(logits, torch.tensor([0, 1, 5]))
    assert metrics["acc1"] == pytest.approx(1 / 3)
    assert metrics["acc5"] == pytest.approx(2 / 3)
    assert metrics["mean_per_class_recall"] == pytest.approx(1 / 3)
    unbalanced = classification_metrics(logits[[0, 0, 0, 1]], torch.tensor([0, 0, 0, 1]))
    assert unbalanced["acc1"] == 0.75
    assert unbalanced["mean_per_class_recall"] == 0.5


def test_fidelity_by_hand():
    reference = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    metrics = fidelity_metrics(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), reference)
    assert metrics["mean_cosine"] == pytest.approx(0.5)
    assert metrics["min_cosine"] == pytest.approx(0.0)
    assert metrics["feature_mse"] == pytest.approx(0.5)


def test_resolution_counts_the_images_that_half_a_point_takes():
    line = resolution_line(1000, 10, 10)
    # share 0.02: 0.02 * (1.96 / 0.005)^2 = 3073.2
    assert "20 of 1000 images changed sides" in line
    assert "takes 3074 images" in line
    assert "fewer than 0.3 %" in resolution_line(1000, 0, 0)


def test_knn_votes_are_weighted_by_similarity():
    train = np.array([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]])
    labels = np.array([0, 1, 1])
    logits = knn_logits(np.array([[1.0, 0.2], [0.0, 2.0]]), train, labels, 3, k=3)
    assert logits.argmax(axis=1).tolist() == [0, 1]
    assert (logits[:, 2] == -np.inf).all()


def test_linear_probe_separates_what_is_separable_and_skips_absent_classes():
    labels = np.arange(60) % 2 * 2  # classes 0 and 2 of three
    train = np.random.default_rng(0).normal(size=(60, 5)) * 0.1 + labels[:, None]
    logits = linear_probe_logits(train, train, labels, 3)
    assert (logits.argmax(axis=1) == labels).all()
    assert (logits[:, 1] == -np.inf).all()
    with pytest.raises(DataError, match="at least two classes"):
        linear_probe_logits(train, train, np.zeros(60, int), 3)


@pytest.mark.parametrize("name", ["cuda", "tensorrt_rtx", "tensorrt"])
def test_an_engine_that_does_not_run_here_is_an_error_and_nothing_else_runs(
    name, run_folder, capsys, monkeypatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    words = ["eval", str(run_folder / "t.regcache"), "--on", name, "--data", "demo", "--limit", "4"]
    assert main([*words, "-q"]) == 7
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_rows_grow_in_one_buffer(monkeypatch):
    monkeypatch.setattr(rows, "FIRST", 4)
    draw = np.random.default_rng(0)
    parts = [draw.normal(size=(n, 3)).astype(np.float32) for n in (2, 3, 1, 11, 2)]
    collected = rows.Rows()
    for part in parts:
        collected.append(part)
    assert np.array_equal(collected.array(), np.concatenate(parts))
