"""Never slower, never worse: `regcache build` and the files that it keeps."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from regcache_deploy.bench.subjects import float_plan
from regcache_deploy.bundling.certify import certify_bundle
from regcache_deploy.cli.main import main
from regcache_deploy.contract.candidates import Candidates
from regcache_deploy.contract.decide import (
    Drop,
    decide,
)
from regcache_deploy.contract.kept_bundle import write_kept
from regcache_deploy.evaluation.corners import simulate
from regcache_deploy.evaluation.layer_error import alone_errors
from regcache_deploy.quantization.baselines import make_baseline
from regcache_deploy.quantization.keep_float import FloatChoice
from regcache_deploy.quantization.plan import calibration_of, make_plan
from regcache_deploy.quantization.quantizers import Uniform
from regcache_deploy.work.progress import Reporter
from regcache_engines.bundle import Bundle
from regcache_engines.load import load_engine
from regcache_export.bundle import add_files, write_bundle
from regcache_export.certificate_files import CERTIFICATE, IMAGES
from regcache_export.targets import GraphOptions
from regcache_export.verify import verify_bundle
from tests.contract.measurements import FLOAT, MIXED, WORSE
from tests.tiny_plans import (
    PREPROCESS,
    naive_calibration,
    tame_encoder,
    tiny_encoder,
    tiny_images,
    tiny_plan,
    tiny_regcache,
)


def test_cost_of_each_linear_by_itself():
    encoder = tiny_encoder()
    calibration = naive_calibration(encoder, tiny_regcache(encoder))
    name = "blocks.1.mlp.fc2"
    coarse = calibration.quantization.linears[name]
    assert isinstance(coarse.input, Uniform)
    coarse = replace(coarse, input=replace(coarse.input, scale=coarse.input.scale * 60))
    broken = replace(
        calibration,
        quantization=replace(
            calibration.quantization, linears=calibration.quantization.linears | {name: coarse}
        ),
    )
    before, after = (alone_errors(c, tiny_images(4)) for c in (calibration, broken))
    assert list(after) == [n for n in encoder.spec.linears() if n in after]
    assert max(after, key=lambda n: after[n]) == name
    assert after[name] > 10 * before[name]
    assert all(after[n] == before[n] for n in after if n != name)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A plan and its bundle (random weights), and images of three of its four classes."""
    folder = tmp_path_factory.mktemp("run")
    plan = tiny_plan()
    plan.save(folder)
    bundle = write_bundle(plan, folder / "t.regcache")
    draw = np.random.default_rng(0)
    for name in ("cat", "dog", "four"):
        (folder / "data" / name).mkdir(parents=True)
        for index in range(8):
            pixels = draw.integers(0, 255, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "data" / name / f"{index}.png")
    assert bundle.is_dir()
    return folder


def build(run_folder, tmp_path, capsys, *arguments):
    options = ["--engine", "onnxruntime", "--output", str(tmp_path / "out"), "--threads", "1"]
    options += ["--seconds", "0.2", "-q", *map(str, arguments)]
    code = main(["build", str(run_folder / "t.regcache"), *options])
    return code, capsys.readouterr()


def test_int8_is_kept_where_it_is(run_folder, tmp_path, capsys):
    data = ["--data", run_folder / "data", "--max-drop", 100, "--min-speedup", 1e-6]
    code, printed = build(run_folder, tmp_path, capsys, *data, "--json")
    assert code == 0, printed.err
    document = json.loads(printed.out)
    assert document["kept"] == "int8"
    assert document["path"] == document["bundle"]
    assert document["images"] == {"judged_on": 12, "chosen_on": 0}
    assert document["drop_metric"] == "top-1"
    assert json.loads((tmp_path / "out/t.decision.json").read_text()) == document


def test_too_slow_ends_with_the_float_file(run_folder, tmp_path, capsys):
    data = ["--data", run_folder / "data", "--max-drop", 100, "--min-speedup", 1e3]
    code, printed = build(run_folder, tmp_path, capsys, *data)
    assert code == 0, printed.err
    lines = printed.out.splitlines()
    assert lines[0] == "kept: float file"
    assert "same one" in printed.out  # why no mixed file was measured
    assert "top-1 on 12 of 24 images" in " ".join(printed.out.split())
    place = tmp_path / "out" / "t-float" / "t-float.regcache"
    assert Bundle.open(place).manifest["quantized_linears"] == 0
    with load_engine(place) as engine:
        features = engine.infer(tiny_images(2).numpy())
    from regcache_export.plan import Plan

    encoder = calibration_of(float_plan(Plan.load(run_folder))).encoder
    assert np.abs(features - encoder(tiny_images(2)).numpy()).max() < 1e-4
    assert not (tmp_path / "out" / "plan.json").exists()  # it may be the run folder itself
    # the plan that lies beside it is the one it was written from
    assert (
        main(["bench", str(place), "--compare", "fp32", "--no-memory", "--rounds", "1", "-q"]) == 0
    )


def test_sensitive_linears_in_float(run_folder, tmp_path, capsys, monkeypatch):
    names = frozenset({"blocks.1.mlp.fc2", "blocks.0.attn.qkv"})
    monkeypatch.setattr(
        Candidates, "choose_layers", lambda *a: FloatChoice(names, -0.1, within=True)
    )
    # the first candidate is refused whatever the machine measures
    bad = replace(WORSE, drop=Drop(100.0, 100.0, 100.0, 12, "top1"))
    monkeypatch.setattr(
        "regcache_deploy.contract.run.decide",
        lambda attempts, contract: decide([lambda: bad, *attempts[1:]], contract),
    )
    data = ["--data", run_folder / "data", "--max-drop", 99, "--min-speedup", 1e-6]
    code, printed = build(run_folder, tmp_path, capsys, *data, "--json")
    assert code == 0, printed.err
    document = json.loads(printed.out)
    assert document["kept"] == "mixed"
    assert document["tried"][1]["float_layers"] == sorted(names)
    bundle = Bundle.open(tmp_path / "out" / "t-mixed" / "t-mixed.regcache")
    assert bundle.manifest["quantized_linears"] == bundle.manifest["linears"] - 2
    assert bundle.manifest["provenance"]["build"]["float_layers"] == sorted(names)


def test_a_mixed_bundle_has_its_own_certificate(run_folder, tmp_path):
    import shutil

    from regcache_deploy.contract.kept_bundle import certify_again
    from regcache_export.plan import Plan

    shutil.copytree(run_folder / "t.regcache", tmp_path / "t.regcache")
    plan = Plan.load(run_folder)
    pixels = torch.randint(0, 256, (3, 32, 24, 3), dtype=torch.uint8)
    certify_bundle(tmp_path / "t.regcache", plan, GraphOptions(), calibration_of(plan), pixels)
    bundle = Bundle.open(tmp_path / "t.regcache")
    candidates = Candidates.of(bundle, run_folder, tmp_path, Reporter(quiet=True))
    mixed = candidates.mixed_plan(frozenset({"blocks.0.mlp.fc1"}))
    place = write_bundle(mixed, tmp_path / "m.regcache")
    certify_again(place, mixed, candidates, {})
    report = verify_bundle(Bundle.open(place))
    report.check()
    assert report.images == 3
    add_files(place, {IMAGES: (place / IMAGES).read_bytes()})
    assert CERTIFICATE in Bundle.open(place).manifest["files"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--workspace", "5"], 2, "--workspace is for TensorRT"),
        (["--engine", "tensorrt", "--batch", "4"], 2, "--batch is for a decision"),
        (["--max-drop", "-1"], 2, "--max-drop -1.0 is out of range"),
        (["--min-speedup", "0"], 2, "--min-speedup 0.0"),
        (["--batch", "0"], 2, "--batch 0"),
        (["--seconds", "0"], 2, "--seconds 0 is out of range"),
        (["--seed=-1"], 2, "--seed -1 is out of range"),
        ([], 2, "pass --data DIR"),
        (["--limit", "9"], 2, "--limit goes with --data"),
        (["--plan", "/nowhere"], 5, "has no plan.json"),
        (["--data", "/nowhere"], 4, "/nowhere"),
    ],
)
def test_mistakes_end_in_one_line(run_folder, tmp_path, capsys, arguments, code, message):
    found, printed = build(run_folder, tmp_path, capsys, *arguments)
    assert found == code
    assert message in printed.err
    assert not list(tmp_path.glob("out/*"))


@pytest.fixture(scope="module")
def strict_folder(tmp_path_factory):
    """A plan of quantizers as published (random weights), and its bundle."""
    folder = tmp_path_factory.mktemp("strict")
    encoder = tame_encoder()
    regcache = tiny_regcache(encoder)
    tokens = encoder.embed(tiny_images(12, seed=3))
    calibration = make_baseline("repqvit", None, "paper").calibrate(
        encoder, tokens, regcache=regcache
    )
    plan = make_plan(
        calibration,
        regcache_config=regcache.config,
        preprocess=PREPROCESS,
        strict=True,
    )
    plan.save(folder)
    write_bundle(plan, folder / "s.regcache")
    return folder


def test_the_float_file_of_a_strict_bundle_is_float(strict_folder, tmp_path):
    candidates = Candidates.of(
        Bundle.open(strict_folder / "s.regcache"), None, tmp_path, Reporter(quiet=True)
    )
    assert candidates.plan.published
    with load_engine(candidates.float_file) as engine:
        features = engine.infer(tiny_images(2).numpy())
    encoder = calibration_of(float_plan(candidates.plan)).encoder
    assert np.abs(features - encoder(tiny_images(2)).numpy()).max() < 1e-4


def test_a_published_linear_goes_back_to_float(strict_folder, tmp_path):
    candidates = Candidates.of(
        Bundle.open(strict_folder / "s.regcache"), None, tmp_path, Reporter(quiet=True)
    )
    name = "blocks.1.mlp.fc2"
    assert name in candidates.calibration.quantization.linears
    mixed = candidates.mixed_plan(frozenset({name}))
    assert name not in calibration_of(mixed).quantization.linears
    with load_engine(candidates.mixed(frozenset({name}))) as engine:
        features = torch.from_numpy(engine.infer(tiny_images(4).numpy()))
    calibration = calibration_of(mixed)
    simulated = simulate(calibration, [tiny_images(4)], lambda n: None)
    assert torch.nn.functional.cosine_similarity(features, simulated).min() > 0.9999


def test_a_bundle_for_tensorrt_is_not_judged_on_a_cpu(tmp_path, capsys):
    plan = tiny_plan()
    plan.save(tmp_path)
    write_bundle(plan, tmp_path / "t.regcache", options=GraphOptions(target="tensorrt"))
    found, printed = build(tmp_path, tmp_path, capsys)
    assert found == 5
    assert "export with --target onnx" in printed.err


def test_a_kept_mixed_bundle_keeps_its_probes(tmp_path):
    plan = tiny_plan()
    plan.save(tmp_path)
    place = write_bundle(plan, tmp_path / "t.regcache", options=GraphOptions(probes=3))
    pixels = torch.randint(0, 256, (3, 32, 24, 3), dtype=torch.uint8)
    certify_bundle(place, plan, GraphOptions(probes=3), calibration_of(plan), pixels)
    candidates = Candidates.of(Bundle.open(place), tmp_path, tmp_path, Reporter(quiet=True))
    watched = Bundle.open(place).manifest["graph"]["probes"][0]["name"].split()[0]
    kept = replace(MIXED, float_layers=(watched,))
    manifest = Bundle.open(write_kept(candidates, kept, tmp_path / "out")).manifest
    outputs = [probe["output"] for probe in manifest["graph"]["probes"]]
    assert outputs
    assert not any(watched in output for output in outputs)
    assert manifest["monitor"]["images"] == 3
    assert list(manifest["monitor"]["calibrated_rates"]) == outputs
    place = write_kept(candidates, FLOAT, tmp_path / "out")
    assert "probes" not in Bundle.open(place).manifest["graph"]
