"""`regcache bench`: timing in turns, the environment, rows with figures or reasons."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest

from regcache_deploy.bench.measure import Bench, Settings, row_columns
from regcache_deploy.bench.memory import peak_memory
from regcache_deploy.bench.subjects import float_plan, subjects_of
from regcache_deploy.bench.timing import Samples, interleave, paired_ratio
from regcache_deploy.cli.main import main
from regcache_deploy.errors import BundleError, EngineError
from regcache_deploy.work.count import resident_peak
from regcache_deploy.work.progress import Reporter
from regcache_engines.bundle import Bundle
from regcache_engines.load import load_engine
from regcache_export.bundle import write_bundle
from regcache_export.bundle_graph import graph_options
from regcache_export.targets import GraphOptions
from tests.tiny_plans import float_calibration, tiny_images, tiny_plan

FAST = ["--rounds", "2", "--warmup", "1", "--no-memory", "-q"]


class FakeClock:
    """Every call of a variant takes as many seconds as `costs` says; nothing else takes time."""

    def __init__(self, costs):
        self.now, self.costs, self.log = 0.0, costs, []

    def __call__(self):
        return self.now

    def run(self, name):
        def call():
            self.log.append(name)
            self.now += self.costs[name]

        return call


def timed(costs, rounds, **keywords):
    clock = FakeClock(costs)
    runs = {name: clock.run(name) for name in costs}
    return clock, interleave(runs, rounds, clock=clock, wall=clock, **keywords)


def test_every_variant_has_one_turn_a_round_in_changing_order():
    clock, samples = timed({"a": 1.0, "b": 2.0, "c": 3.0}, 8, warmup=2)
    assert clock.log[:6] == ["a", "a", "b", "b", "c", "c"]
    turns = [tuple(clock.log[6 + 3 * i : 9 + 3 * i]) for i in range(8)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    assert len(set(turns)) > 1
    assert samples.rounds("b") == [2000.0] * 8
    assert samples.ratio("c", "a").value == 3.0


def test_a_fast_variant_gets_more_calls_and_one_that_is_not_timed():
    clock, samples = timed({"slow": 1 / 2, "fast": 1 / 128, "faster": 1 / 1024}, 3, turn_ms=32)
    assert [len(turn) for turn in samples.milliseconds["fast"]] == [4] * 3
    assert [len(turn) for turn in samples.milliseconds["slow"]] == [1] * 3
    assert [len(turn) for turn in samples.milliseconds["faster"]] == [20] * 3  # max_calls
    assert clock.log.count("fast") == 1 + 3 * 5
    assert clock.log.count("slow") == 1 + 3


def test_fast_variants_rest_before_their_turn():
    rests: list[float] = []
    clock = FakeClock({"fast": 1 / 128, "slow": 1.0})
    runs = {name: clock.run(name) for name in clock.costs}
    interleave(runs, 3, clock=clock, wall=clock, turn_ms=32, pause=0.25, rest=rests.append)
    assert rests == [0.25] * 3  # the slow one does without


def test_no_round_begins_after_the_time_is_up():
    _, samples = timed({"a": 1.0, "b": 1.0}, 100, seconds=9)
    assert len(samples.rounds("a")) == len(samples.rounds("b")) == 5


def test_ratio_is_of_pairs_and_not_of_medians():
    # the machine is ten times slower in every second round, for both alike
    slow = np.tile([1.0, 10.0], 20)
    found = paired_ratio(list(3.0 * slow), list(2.0 * slow))
    assert found.value == found.low == found.high == 1.5
    assert found.rounds == 40
    noisy = paired_ratio([1.0, 2.0, 3.0, 4.0] * 5, [1.0] * 20)
    assert 1.0 <= noisy.low < noisy.value == 2.5 < noisy.high <= 4.0


def test_percentiles_take_every_call():
    samples = Samples({"x": [[1.0, 2.0], [3.0, 100.0]]})
    assert samples.percentile("x", 50) == 2.5
    assert samples.calls("x") == [1.0, 2.0, 3.0, 100.0]
    assert samples.rounds("x") == [1.5, 51.5]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A plan and its bundle, random weights."""
    folder = tmp_path_factory.mktemp("run")
    plan = tiny_plan()
    plan.save(folder)
    write_bundle(plan, folder / "t.regcache")
    return folder


def bench_json(capsys, *arguments):
    code = main(["bench", *map(str, arguments), "--json", *FAST])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(captured.out)


def test_rows_of_int8_beside_float(run_folder, capsys, tmp_path):
    found = bench_json(
        capsys, run_folder / "t.regcache", "--batch", "1,3", "--threads", "1", "--csv", tmp_path
    )
    assert found["environment"]["cores"] >= 1
    rows = [row for row in found["rows"] if row["engine"] == "onnxruntime"]
    assert [(r["precision"], r["infer_batch_size"]) for r in rows] == [
        ("fp32", 1),
        ("fp32", 3),
        ("int8", 1),
        ("int8", 3),
    ]
    for row in rows:
        assert 0 < row["infer_step_time"] <= row["p90_ms"] <= row["p99_ms"]
        rate = row["infer_batch_size"] / row["infer_step_time"] * 1e3
        assert row["infer_samples_per_sec"] == pytest.approx(rate, rel=1e-3)
        assert ("speedup" in row) == (row["precision"] == "int8")
    assert rows[2]["speedup_low"] <= rows[2]["speedup"] <= rows[2]["speedup_high"]
    assert rows[0]["file_mib"] > 1.5 * rows[2]["file_mib"]
    skipped = [row for row in found["rows"] if row["engine"] == "cuda"]
    assert skipped
    assert all(row["reason"] and "infer_step_time" not in row for row in skipped)
    (file,) = tmp_path.glob("bench-*.csv")
    with file.open(newline="") as stream:
        written = list(csv.DictReader(stream))
    assert len(written) == len(found["rows"])
    assert {"model", "infer_samples_per_sec", "cpu_flags", "measured_at"} <= written[0].keys()
    assert all(row["cpu"] == found["environment"]["cpu"] for row in written)


def test_table_says_what_was_not_run(run_folder, capsys):
    arguments = [str(run_folder / "t.regcache"), "--batch", "1", "--threads", "1", *FAST]
    assert main(["bench", *arguments]) == 0
    text = capsys.readouterr().out
    assert "not run on cuda: CUDAExecutionProvider needs" in " ".join(text.split())
    assert "random pixels" in text
    assert "written from the plan beside the bundle" in text


def test_a_float_file_that_cannot_be_had(run_folder, capsys, tmp_path):
    alone = write_bundle(tiny_plan(), tmp_path / "alone.regcache")
    found = bench_json(capsys, alone, "--batch", "1", "--engine", "onnxruntime")
    reasons = {row["precision"]: row["reason"] for row in found["rows"]}
    assert "no plan.json" in reasons["fp32"]
    assert reasons["int8"] == ""
    assert "speedup" not in found["rows"][1]
    assert main(["bench", str(alone), "--compare", "fp32,int8", *FAST]) == 5
    assert "no plan.json" in capsys.readouterr().err
    found = bench_json(
        capsys, alone, "--fp32", run_folder / "t.regcache/model.onnx", "--engine", "onnxruntime"
    )
    assert all(not row["reason"] for row in found["rows"])


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (["--engine", "cuda"], 7, "needs an NVIDIA GPU"),
        (["--engine", "tensort"], 2, "unknown engine 'tensort'"),
        (["--batch", "0"], 2, "--batch 0"),
        (["--batch", "x"], 2, "--batch x"),
        (["--compare", "bf16"], 2, "--compare bf16"),
        (["--compare", "fp16"], 5, "for --target tensorrt only"),
        (["--rounds", "0"], 2, "--rounds 0"),
        (["--fp32", "/nowhere.onnx", "--compare", "fp32"], 5, "there is no /nowhere.onnx"),
        (["--fp32", "/nowhere.onnx", "--compare", "int8"], 2, "goes with fp32 in --compare"),
        (["--plan", "/nowhere", "--compare", "int8"], 2, "--plan is for a float file"),
        (["--plan", "/nowhere", "--fp32", "/nowhere.onnx"], 2, "--plan is for a float file"),
    ],
)
def test_mistakes_end_in_one_line(run_folder, capsys, change, code, message):
    if "--engine" in change and "cuda" in change:
        pytest.importorskip("onnxruntime")
    assert main(["bench", str(run_folder / "t.regcache"), *FAST, *change]) == code
    assert message in capsys.readouterr().err


def test_two_bundles_of_one_name_are_refused(run_folder, capsys, tmp_path):
    other = write_bundle(tiny_plan(), tmp_path / "t.regcache")
    assert main(["bench", str(run_folder / "t.regcache"), str(other), *FAST]) == 2
    assert "same name" in capsys.readouterr().err


def test_float_file_computes_the_float_encoder(run_folder, tmp_path):
    bundle = Bundle.open(run_folder / "t.regcache")
    (subject,) = subjects_of(bundle, ("fp32",), tmp_path)
    images = tiny_images(3)
    from regcache_export.plan import Plan

    plan = float_plan(Plan.load(run_folder))
    assert (plan.linears, plan.regcache) == ({}, None)
    from regcache_deploy.quantization.plan import calibration_of

    wanted = float_calibration(calibration_of(plan).encoder).encoder(images).numpy()
    assert subject.path is not None
    with load_engine(subject.path) as engine:
        assert np.abs(engine.infer(images.numpy()) - wanted).max() < 1e-4


@pytest.mark.parametrize("pixels", [None, "nchw", "nhwc"])
def test_graph_options_are_read_off_the_manifest(tmp_path, pixels):
    options = GraphOptions(
        target="onnxruntime", pixels=pixels, batch=2, without=("cls-only",), probes=2
    )
    bundle = Bundle.open(write_bundle(tiny_plan(), tmp_path / "b.regcache", options=options))
    assert graph_options(bundle) == options


def test_a_fixed_batch_gives_a_reason_for_other_sizes(tmp_path, capsys):
    plan = tiny_plan()
    plan.save(tmp_path)
    bundle = write_bundle(
        plan, tmp_path / "b.regcache", options=GraphOptions(batch=2, pixels="nhwc")
    )
    words = ["--batch", "1,2", "--engine", "onnxruntime", "--seconds", "inf"]
    found = bench_json(capsys, bundle, *words)
    assert found["settings"]["seconds"] is None, "Infinity is no JSON"
    by = {(row["precision"], row["infer_batch_size"]): row["reason"] for row in found["rows"]}
    assert by["int8", 2] == by["fp32", 2] == ""
    assert by["int8", 1] == by["fp32", 1] == "the graph has a fixed batch of 2, not 1"
    words = ["bench", str(bundle), "--batch", "1,4", "--engine", "onnxruntime", "--no-memory", "-q"]
    kept = {path: path.read_bytes() for path in tmp_path.glob("bench*")}
    assert kept
    assert main(words) == EngineError.exit_code  # named, and no file ran
    assert "nothing was timed with onnxruntime" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.glob("bench*")} == kept


def test_named_engines_must_run_and_others_need_not(run_folder, tmp_path):
    bundle = Bundle.open(run_folder / "t.regcache")
    subjects = subjects_of(bundle, ("int8",), tmp_path)

    def opener(engine, path, threads, batches, cache):
        raise EngineError("no such\nmachine")

    def bench(**keywords):
        return Bench(
            subjects, ["cuda"], {}, Settings(**keywords), tmp_path, Reporter(quiet=True), opener
        ).run()

    row = row_columns(bench(batches=(1,))[0])
    assert row["reason"] == "no such machine"
    with pytest.raises(EngineError):
        bench(must_run=frozenset({"cuda"}))


def test_missing_float_file_is_an_error_only_where_it_was_asked_for(tmp_path):
    bundle = Bundle.open(write_bundle(tiny_plan(), tmp_path / "b.regcache"))
    (subject,) = subjects_of(bundle, ("fp16",), tmp_path)
    assert subject.path is None
    assert "tensorrt only" in subject.reason
    with pytest.raises(BundleError):
        subjects_of(bundle, ("fp16",), tmp_path, must=True)


def test_memory_is_that_of_the_file(run_folder, tmp_path):
    if resident_peak() is None:
        pytest.skip("this system does not tell")
    model = run_folder / "t.regcache" / "model.onnx"
    peak = peak_memory("onnxruntime", model, 1, 1, tmp_path)
    assert peak is not None
    assert 10 < peak.imports_mib <= peak.peak_mib < 2000
    with pytest.raises(EngineError, match="measuring memory"):
        peak_memory("onnxruntime", tmp_path / "none.onnx", 1, 1, tmp_path)


def test_a_file_without_suffix_is_a_file_and_mistakes_come_before_the_timing(
    run_folder, capsys, tmp_path, monkeypatch
):
    words = [str(run_folder / "t.regcache"), "--batch", "1", "--engine", "onnxruntime"]
    (tmp_path / "table").write_text("old")
    assert bench_json(capsys, *words, "--csv", tmp_path / "table")["rows"]
    assert (tmp_path / "table").read_text().startswith("bundle,")
    bench_json(capsys, *words, "--csv", tmp_path / "new" / "folder")
    assert len(list((tmp_path / "new" / "folder").glob("bench-*.csv"))) == 1

    monkeypatch.setattr("regcache_deploy.bench.measure.Bench.run", lambda self: pytest.fail("ran"))
    for table in ("table/x.csv", "table/x"):
        assert main(["bench", *words, "--csv", str(tmp_path / table), *FAST]) == 2
        assert "table is no folder; choose another --csv" in capsys.readouterr().err
    for compare in (",", ""):
        assert main(["bench", *words, "--compare", compare, *FAST]) == 2
        assert "write precisions by comma: fp32,int8" in capsys.readouterr().err


def test_a_failed_memory_child_leaves_the_timings(run_folder, capsys, monkeypatch):
    def fail(*arguments):
        raise EngineError("killed\nby the system")

    monkeypatch.setattr("regcache_deploy.bench.measure.peak_memory", fail)
    words = [str(run_folder / "t.regcache"), "--batch", "1", "--engine", "onnxruntime"]
    fast = ["--rounds", "2", "--warmup", "1", "--memory", "-q", "--json"]
    assert main(["bench", *words, *fast]) == 0
    captured = capsys.readouterr()
    rows = json.loads(captured.out)["rows"]
    assert [row["precision"] for row in rows] == ["fp32", "int8"]
    for row in rows:
        assert row["infer_step_time"] > 0
        assert "peak_memory_mib" not in row
        assert row["reason"] == ""
    assert captured.err.count("no peak memory: killed by the system") == 2


def test_a_bundle_is_shown_by_its_name_whatever_is_in_it(run_folder, tmp_path, capsys):
    place = tmp_path / "t[bold]:100:.regcache"
    shutil.copytree(run_folder / "t.regcache", place)
    words = [str(place), "--compare", "int8", "--engine", "onnxruntime", *FAST]
    assert main(["bench", *words]) == 0
    shown = "".join(capsys.readouterr().out.split())
    assert "t[bold]:100:" in shown.replace("│", "")
