"""Never slower, never worse: the decision with given measurements, and `regcache build` with it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from regcache_deploy.bench.subjects import float_plan
from regcache_deploy.bench.timing import Interval
from regcache_deploy.bundling.certify import certify_bundle
from regcache_deploy.cli.main import main
from regcache_deploy.contract.candidates import Candidates
from regcache_deploy.contract.data import JudgeData, counted_drop, measure_drop
from regcache_deploy.contract.decide import (
    Contract,
    Decision,
    Drop,
    Measured,
    Skipped,
    decide,
    judge,
)
from regcache_deploy.contract.kept_bundle import write_kept
from regcache_deploy.contract.measure import refuse_mixed
from regcache_deploy.errors import ConfigError, DataError
from regcache_deploy.evaluation.corners import simulate
from regcache_deploy.evaluation.layer_error import alone_errors
from regcache_deploy.quantization.baselines import make_baseline
from regcache_deploy.quantization.keep_float import FloatChoice
from regcache_deploy.quantization.plan import calibration_of, make_plan
from regcache_deploy.quantization.quantizers import Uniform
from regcache_deploy.report.contract import _figures
from regcache_deploy.report.verdict import kept_words
from regcache_deploy.work.progress import Reporter
from regcache_engines.bundle import Bundle
from regcache_engines.load import load_engine
from regcache_export.bundle import add_files, write_bundle
from regcache_export.certificate_files import CERTIFICATE, IMAGES
from regcache_export.targets import GraphOptions
from regcache_export.verify import verify_bundle
from tests.tiny_plans import (
    PREPROCESS,
    naive_calibration,
    tame_encoder,
    tiny_encoder,
    tiny_images,
    tiny_plan,
    tiny_regcache,
)


def measured(form, drop=(0.0, 0.0, 0.0), speed=(1.0, 1.0, 1.0)):
    loss, low, high = drop
    ratio, slowest, fastest = speed
    return Measured(form, Drop(loss, low, high, 100, "top1"), Interval(ratio, slowest, fastest, 9))


GOOD = measured("int8", (0.2, 0.1, 0.3), (2.0, 1.9, 2.1))
WORSE = measured("int8", (0.7, 0.6, 0.8), (2.0, 1.9, 2.1))
SLOW = measured("int8", (0.2, 0.1, 0.3), (1.01, 1.0, 1.02))
UNSURE = measured("int8", (0.3, -0.4, 1.0), (1.1, 0.9, 1.3))
MIXED = measured("mixed", (0.4, 0.3, 0.5), (1.5, 1.4, 1.6))
FLOAT = measured("float")


@pytest.mark.parametrize(
    ("candidates", "strict", "kept", "proven"),
    [
        ([GOOD], False, "int8", True),
        ([WORSE, MIXED], False, "mixed", True),
        ([WORSE, Skipped("mixed", "no use"), FLOAT], False, "float", True),
        ([SLOW, Skipped("mixed", "no use"), FLOAT], False, "float", True),
        ([UNSURE], False, "int8", False),
        ([UNSURE, MIXED], True, "mixed", True),
        ([UNSURE, UNSURE, FLOAT], True, "float", True),
        # the bounds belong to what is allowed
        ([measured("int8", (0.5, 0.5, 0.5), (1.02, 1.02, 1.02))], True, "int8", True),
    ],
)
def test_first_candidate_that_keeps_the_contract(candidates, strict, kept, proven):
    asked = []

    def attempt(candidate):
        def measure():
            asked.append(candidate)
            return candidate

        return measure

    never = [attempt(FLOAT)] * 2
    decision = decide([attempt(c) for c in candidates] + never, Contract(strict=strict))
    assert decision.kept.form == kept
    assert decision.verdicts[-1].proven is proven
    assert asked == candidates  # what comes behind is not measured
    document = decision.to_json()
    assert document["kept"] == kept
    assert [t["form"] for t in document["tried"]] == [c.form for c in candidates]
    assert all(t["reasons"] for t in document["tried"])
    json.dumps(document)


def test_a_loss_of_just_what_is_allowed_is_kept():
    """As floats, 100 * 7 / 500 is above 1.4."""
    before = torch.ones(500)
    after = before.clone()
    after[:7] = 0
    drop = counted_drop(before, after, 0, "top1", exact=True)
    assert drop.value > 1.4
    found = judge(Measured("int8", drop, Interval(2.0, 1.9, 2.1, 9)), Contract(max_drop=1.4))
    assert found.keep
    assert "of at most 1.4: kept" in found.reasons[0]
    pair = {"difference": -drop.value, "low": -drop.value, "high": 0.0}
    assert kept_words(pair, 1.4) == "yes"


def test_reasons_name_the_figure_and_the_bound():
    slow, worse = judge(SLOW, Contract()), judge(WORSE, Contract())
    assert slow.reasons[0] == "loses 0.20 points [0.10, 0.30], of at most 0.5: kept"
    assert slow.reasons[1].startswith("1.01 times as fast [1.00, 1.02], of at least 1.02")
    assert slow.reasons[1].endswith("not kept")
    assert worse.reasons[0].endswith("not kept")
    assert "not by the interval" in judge(UNSURE, Contract()).reasons[0]
    assert "not kept under --strict" in judge(UNSURE, Contract(strict=True)).reasons[0]


@pytest.mark.parametrize(
    ("candidate", "sentence"),
    [
        (
            measured("int8", speed=(1.0196, 1.0151, 1.0242)),
            "1.0196 times as fast [1.0151, 1.0242], of at least 1.02: not kept",
        ),
        (
            measured("int8", speed=(1.03, 1.0196, 1.04)),
            "1.0300 times as fast [1.0196, 1.0400], of at least 1.02: kept by the estimate, not by "
            "the interval",
        ),
        (
            measured("int8", (0.5004, 0.4, 0.6), (2.0, 1.9, 2.1)),
            "loses 0.5004 points [0.4000, 0.6000], of at most 0.5: not kept",
        ),
        (
            measured("int8", (-0.1, -0.3, 0.501), (2.0, 1.9, 2.1)),
            "gains 0.100 points [-0.501, 0.300], a loss of at most 0.5 is allowed: kept by the "
            "estimate, not by the interval",
        ),
        (
            Measured("int8", Drop(0.5004, 0.4, 0.6, 9, "cosine"), Interval(2.0, 1.9, 2.1, 9)),
            "cosine to the float file 0.994996 [0.994000, 0.996000], of at least 0.99500: not kept",
        ),
    ],
)
def test_no_figure_is_rounded_over_its_bound(candidate, sentence):
    assert sentence in judge(candidate, Contract()).reasons


def test_the_table_shows_a_figure_on_its_side_of_the_bound():
    document = decide(
        [lambda: measured("int8", (0.5004, 0.4, 0.6), (1.0196, 1.0, 1.04)), lambda: FLOAT],
        Contract(),
    ).to_json()
    figures = _figures(document["tried"][0], document["contract"])
    assert figures == ["0.5004 [0.4000, 0.6000]", "1.0196 [1.0000, 1.0400]"]


def test_float_file_must_come_last():
    with pytest.raises(ValueError, match="float file"):
        decide([lambda: WORSE], Contract())
    assert isinstance(decide([lambda: FLOAT], Contract()), Decision)


@pytest.mark.parametrize("values", [{"max_drop": -1}, {"max_drop": 101}, {"min_speedup": 0}])
def test_contract_out_of_range(values):
    with pytest.raises(ConfigError, match="out of range"):
        Contract(**values)


def test_drop_by_hand():
    head = torch.eye(3)
    reference = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [1.0, 0, 0]])
    found = reference.clone()
    found[1], found[3] = torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0])
    labels = torch.tensor([0, 1, 0, 1])  # the float file is wrong on the last two
    drop = measure_drop(reference, found, head, labels, 100.0, 0)
    assert (drop.value, drop.metric, drop.n) == (0.0, "top1", 4)  # one lost, one won
    assert drop.low < 0 < drop.high
    changed = measure_drop(reference, found, head, None, 100.0, 0)
    assert (changed.value, changed.metric) == (50.0, "changed")
    assert changed.low >= 0
    cosine = measure_drop(reference, found, None, None, 100.0, 0)
    assert (cosine.value, cosine.metric) == (50.0, "cosine")
    assert measure_drop(reference, reference, None, None, 100.0, 0).high == 0


def test_images_that_choose_do_not_judge():
    pixels = np.arange(16, dtype=np.uint8).reshape(16, 1, 1, 1).repeat(3, 3)
    data = JudgeData.split(pixels, torch.arange(16), "numbers")
    assert data.select_labels is not None
    assert data.judge_labels is not None
    assert data.select_labels.tolist() == data.select[:, 0, 0, 0].tolist()
    assert data.judge_labels.tolist() == data.judge[:, 0, 0, 0].tolist()
    assert sorted([*data.select_labels.tolist(), *data.judge_labels.tolist()]) == list(range(16))
    assert len(data.judge) == 8
    with pytest.raises(DataError, match="too few"):
        JudgeData.split(pixels[:5], None, "five")


def test_classes_that_take_turns_all_judge():
    """As a folder lists them: every second image would be of every second class."""
    labels = torch.arange(10).repeat(20)
    data = JudgeData.split(np.zeros((200, 1, 1, 3), np.uint8), labels, "ten classes")
    for half in (data.select_labels, data.judge_labels):
        assert half is not None
        assert len(half.unique()) == 10


def test_few_images_and_few_rounds_prove_nothing():
    same = torch.eye(3)
    drop = measure_drop(same, same, torch.eye(3), torch.arange(3), 100.0, 0)
    assert drop.value == 0
    assert drop.high == pytest.approx(100 * (1 - 0.025 ** (1 / 3)))  # 0 of 3, exactly
    assert drop.low == -drop.high
    many = torch.eye(3).repeat(1000, 1)
    changed = measure_drop(many, many, torch.eye(3), None, 100.0, 0)
    assert changed.low == 0 < changed.high < 0.2
    fast = replace(GOOD, speedup=Interval(5.0, 5.0, 5.0, 1))
    assert judge(fast, Contract()).keep
    assert not judge(fast, Contract(strict=True)).keep
    assert "in 1 rounds only" in judge(fast, Contract()).reasons[1]


def test_mixed_is_refused_where_it_would_be_another_candidate():
    assert "no linear in float" in refuse_mixed(FloatChoice(frozenset(), -0.1, True), 12)
    assert refuse_mixed(FloatChoice(frozenset({"a"}), -0.1, True), 12) == ""
    assert "1.60 points" in refuse_mixed(FloatChoice(frozenset({"a", "b"}), -1.6, False), 2)
    assert "all linears" in refuse_mixed(FloatChoice(frozenset({"a", "b"}), -0.1, True), 2)


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
    certify_again(place, mixed, candidates)
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
