"""`--merge`: exported, simulated, chosen by speed and accuracy, and refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from regcache_deploy.cli.main import main
from regcache_deploy.report.document import load_document
from regcache_deploy.report.html import write_page
from regcache_engines.bundle import Bundle
from regcache_export.inspect import integer_gemms
from regcache_export.merge import Merge, MergeSchedule
from regcache_export.plan import Plan
from regcache_export.verify import verify_bundle

SMALL = ["--search-images", "48", "--calibration-images", "16", "--limit", "60", "-q"]
SMALL += ["--baseline", "naive", "--prefix-block", "2", "--prefix-count", "4", "--threads", "1"]
SATURATED = ["--delete-count", "0", "--range-delete-count", "6"]


def run(command: str, arguments: list[str], output: Path, capsys: Any) -> dict[str, Any]:
    code = main([command, *SMALL, *arguments, "--output", str(output), "--json"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    document: dict[str, Any] = json.loads(printed.out)
    return document


@pytest.mark.slow
def test_a_schedule_is_in_the_bundle_and_in_no_other_corner(tmp_path: Path, capsys: Any) -> None:
    arguments = ["--merge", "(3,-1)", "--merge-metric", "residual", *SATURATED]
    found = run("export", arguments, tmp_path / "run", capsys)
    plan = Plan.load(tmp_path / "run")
    counts = MergeSchedule.parse("(3,-1)").counts(plan.encoder, plan.regcache)
    assert plan.merge == Merge(counts, "residual")
    assert found["merge"] == {"schedule": "(3,-1)", "compat": False, **plan.merge.to_json()}
    assert found["accuracy"]["deployed"] == pytest.approx(found["accuracy"]["recipe"], abs=0.04)
    assert found["accuracy"]["unmerged"] == found["accuracy"]["regcache"]
    assert (found["merge_front"], found["merge_reason"]) == ([], "")
    bundle = Bundle.open(found["bundle"])
    assert integer_gemms(bundle.model_path) == 4 * plan.encoder.depth
    report = verify_bundle(bundle)
    report.check()
    plain = run("export", SATURATED, tmp_path / "plain", capsys)
    assert plain["merge"] is None
    assert "unmerged" not in plain["accuracy"]
    same = ("fp32", "baseline", "regcache")
    assert [plain["accuracy"][n] for n in same] == [found["accuracy"][n] for n in same]
    assert plain["accuracy"]["deployed"] != found["accuracy"]["deployed"]


@pytest.mark.slow
def test_auto_weighs_graphs_and_its_file_serves_another_run(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regcache_deploy.bench.merge_latency.ROUNDS", 1)
    arguments = ["--merge", "auto", "--max-drop", "100", "--delete-count", "5"]
    found = run("search", arguments, tmp_path / "run", capsys)
    front = {(p["merge"], p["delete_count"]): p for p in found["merge_front"]}
    assert {("fp32", 0), ("quantizer alone", 0), ("none", 5)} <= front.keys()
    assert {deleted for _, deleted in front} == {0, 5}  # with deletion, and with saturation
    assert sum(p["chosen"] for p in found["merge_front"]) == 1
    assert front["fp32", 0]["points"] == 0
    assert all(p["ms"] > 0 for p in front.values())
    page = tmp_path / "page.html"
    write_page(tmp_path / "run", load_document(tmp_path / "run"), page)
    assert "Fewer tokens" in page.read_text()

    # a machine where one schedule is by far the fastest
    path = tmp_path / "other.csv"
    with (tmp_path / "run/merge_front.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    fast = next(row for row in rows if row["merge"].startswith("("))
    fast["ms"] = str(float(fast["ms"]) / 1000)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    again = run("search", [*arguments, "--latency", str(path)], tmp_path / "run", capsys)
    (chosen,) = (p for p in again["merge_front"] if p["chosen"])
    assert (chosen["merge"], str(chosen["delete_count"])) == (fast["merge"], fast["delete_count"])
    assert again["merge"]["schedule"] == fast["merge"]
    assert again["delete_count"] == chosen["delete_count"]
    assert "times as fast" in again["merge_reason"]
    assert again["accuracy"]["recipe"] is not None

    # an export of that search merges as it chose
    arguments = ["export", "-q", "--from", str(tmp_path / "run"), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--limit", "60", "--threads", "1", "--json"]) == 0
    baked = json.loads(capsys.readouterr().out)
    assert baked["merge"] == again["merge"]
    assert Plan.load(tmp_path / "out").merge is not None


def test_published_indexing_is_simulated(tmp_path: Path, capsys: Any) -> None:
    arguments = ["--merge", "5", "--merge-compat", "--delete-count", "0"]
    found = run("search", arguments, tmp_path / "run", capsys)
    assert found["merge"]["compat"]
    assert found["accuracy"]["recipe"] != found["accuracy"]["unmerged"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--merge", "nine"], 2, "no schedule"),
        (["--merge=-3"], 2, "cannot merge -3"),
        (["--merge", "2:19"], 2, "block 2 cannot merge 19"),
        (["--merge", "1,1,1,1,1,1,1"], 2, "7 counts for 6 blocks"),
        (["--merge", "9:2"], 2, "blocks 0..5"),
        (
            [*"--merge 0:18 --delete-count 18 --sensitive-layer blocks.2.fc2".split()],
            2,
            "RegCache deletes 18",
        ),
        (["--merge", "2", "--merge-metric", "values"], 2, "keys, residual"),
        (["--merge-proportional"], 2, "need --merge"),
        (["--merge", "2", "--latency", "x.csv"], 2, "--latency needs --merge auto"),
        (["--merge", "2", "--merge-compat"], 2, "only simulated"),
        (["--merge", "2", "--strict-paper"], 2, "--strict-paper"),
        (["--merge", "auto", "--target", "tensorrt"], 2, "ONNX Runtime"),
        (["--merge", "auto", "--max-drop=-1"], 2, "--max-drop"),
        (["--merge", "auto", "--latency", "{tmp}/none.csv"], 4, "none.csv"),
    ],
)
def test_refused_before_anything_is_written(
    arguments: list[str], code: int, message: str, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "run"
    filled = [a.format(tmp=tmp_path) for a in arguments]
    assert main(["export", "--baseline", "naive", *filled, "--output", str(out), "-q"]) == code
    assert message in capsys.readouterr().err
    assert not out.exists()
