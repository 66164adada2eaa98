"""Several runs on one page; one accuracy and one speed lead it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from regcache_deploy.cli.main import main
from regcache_deploy.report import compare
from regcache_deploy.report.answer import accuracy_card, speed_card
from regcache_deploy.report.html import inline
from regcache_deploy.report.measured import accuracies, speeds
from regcache_deploy.report.overview import facts, story
from regcache_deploy.report.search_sections import accuracy
from tests.report.test_report_bundle import FASTER, PAIR, ROW, result

LOOK = {"value": 1.5, "low": 1.4, "high": 1.6, "rounds": 20} | {
    "engine": "onnxruntime",
    "batch": 1,
    "threads": 2,
}
DROP = {"value": 0.4, "low": -0.1, "high": 0.9, "n": 5000, "metric": "top1"}
DECISION = {
    "kept": "int8",
    "proven": False,
    "path": "t.regcache",
    "contract": {"max_drop": 0.5, "min_speedup": 1.02, "strict": False},
    "tried": [
        {
            "form": "int8",
            "drop": DROP,
            "speedup": LOOK | {"value": 1.7},
            "keep": True,
            "reasons": [],
        }
    ],
    "drop_measured_on": "5000 of 10000 images (DIR), drawn at random",
    "drop_metric": "top-1",
    "speed_measured_at": {"engine": "onnxruntime 1.2", "batch": 1, "threads": 2, "control": None},
    "images": {"judged_on": 5000, "chosen_on": 0},
    "interval": "95 %",
    "warning": "",
}


def evaluated(n: int, value: float) -> dict[str, Any]:
    """What `regcache eval` keeps, made up."""
    record = {"dataset": "VAL", "task": "zeroshot_classification", "n": n}
    return {
        "reference": "fp32",
        "results": [
            record | {"on": "fp32", "metrics": {"acc1": 0.9}, "paired": None},
            record | {"on": "onnxruntime", "metrics": {"acc1": value}, "paired": PAIR},
        ],
    }


def test_the_larger_set_leads_and_the_others_are_named() -> None:
    document = result(evaluations=[evaluated(2000, 0.895)], decision=DECISION)
    assert [(a.by, a.n) for a in accuracies(document)] == [
        ("regcache eval", 2000),
        ("regcache export", 34),
        ("regcache build", 5000),  # only the difference was kept, so it never leads
    ]
    card = accuracy_card(document)
    assert "89.50 %" in card.detail
    assert "on 2000 images" in card.detail
    assert "2 other measurements below" in card.detail
    few = result(evaluations=[evaluated(20, 0.895)])
    assert "on 34 held-out images" in accuracy_card(few).detail


def test_the_same_images_on_another_engine_are_told_apart() -> None:
    evaluation = evaluated(2000, 0.895)
    other = evaluation["results"][1] | {"on": "openvino", "metrics": {"acc1": 0.894}}
    document = result(evaluations=[evaluation | {"results": [*evaluation["results"], other]}])
    table = accuracy(Path(), document).tables[-1]
    assert [row[0].split(",")[0] for row in table.rows] == [
        "regcache eval (onnxruntime)",
        "regcache eval (openvino)",
        "regcache export (ONNX Runtime)",
    ]
    for text in (accuracy_card(document).detail, table.caption):
        assert "on other images, too" not in text
        assert "same file on other images" not in text


def test_one_speed_leads_whatever_else_was_measured() -> None:
    look, decided = {"speed": LOOK}, {"decision": DECISION}
    assert speed_card(result()).answer == "not measured"
    assert speed_card(result(**look)).answer == "yes, 1.50×"
    assert speed_card(result(**look, **decided)).answer == "yes, 1.70×"
    rows = [ROW | FASTER | {"infer_batch_size": "8", "speedup": "9"}, ROW | FASTER]
    document = result(**look, **decided, bench=rows)
    assert speed_card(document).answer == "yes, 2.50×"  # at the smallest batch, not the best one
    assert [s.value for s in speeds(document)] == [2.5, 9.0, 1.7, 1.5]


def test_what_was_run_and_what_it_did() -> None:
    norms = {
        "images": 12,
        "before": {"largest": 2000.0, "mean": 1500.0},
        "after": {"largest": 7.0, "mean": 5.0},
        "after_means": "as ranges are set",
    }
    account = {"command": "regcache export", "date": "2026-01-01", "versions": {"torch": "2.13"}}
    document = result(token_norms=norms, run=account)
    assert ("command", "`regcache export`") in facts(document)
    assert not [value for _, value in facts(document) if not value]
    told = story(Path(), document)
    assert told is not None
    text = " ".join(told.text)
    for words in ("norm 2000", "blocks 1 to 2", "3 copies", "deletes the 4 largest", "is 7 ("):
        assert words in text
    nothing = result(
        token_norms=norms | {"after": None}, prefix_count=0, prefix_add_blocks=[], delete_count=0
    )
    told = story(Path(), nothing)
    assert told is not None
    assert "RegCache was not used" in told.text[-1]
    assert "A range of 256 codes" in told.text[0]
    none = {"prefix_count": 0, "delete_count": 0}
    for changes, words in (
        ({"recipe": "smoothed"}, "the recipe `smoothed` has none"),
        ({"recipe": "regcache", "trials": [none]}, "no prefix and no deletion was tried"),
        ({"recipe": "regcache", "trials": [none, none | {"delete_count": 2}]}, "better than the q"),
        ({"recipe": "x", "ways": [{"name": "x", "chosen": True}]}, "the way that was chosen"),
    ):
        told = story(Path(), nothing | {"bits": "w4a4"} | changes)
        assert told is not None
        assert words in told.text[-1]
        assert "A range of 16 codes" in told.text[0]
    assert story(Path(), result()) is None


def test_runs_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, ratio in (("one", 1.45), ("two", 1.55)):
        folder = tmp_path / name
        folder.mkdir()
        document = result(speed=LOOK | {"value": ratio}, file_mib={"fp32": 10.0, "int8": 2.5})
        (folder / "result.json").write_text(json.dumps(document))
    (tmp_path / "one" / "report.html").write_text("a page")
    runs = [str(tmp_path / name) for name in ("one", "two")]
    assert main(["report", *runs]) == 0
    output = tmp_path / "compare.html"
    assert capsys.readouterr().out.strip() == str(output)
    text = output.read_text(encoding="utf-8")
    for words in (
        "1: one",
        "2: two",
        "1.55",
        "[1.40, 1.60]",
        "10.0 to 2.5",
        'href="one/report.html"',
    ):
        assert words in text
    assert "two/report.html" not in text
    assert text.count("<img ") == 1
    assert main(["report", *runs, "--triton", str(tmp_path)]) == 2
    assert "--triton goes with one run" in capsys.readouterr().err
    for more, said in (
        ([*runs, "--device", "cuda:1"], "--device is of the error by layer, and 2 runs are"),
        ([*runs, "--threads", "2"], "--threads is of the error by layer"),
        ([runs[0], "--threads", "2"], "holds no bundle"),
        ([runs[0], "--bundle", runs[1], "--no-layers", "--device", "cpu"], "--no-layers leaves"),
    ):
        assert main(["report", *more]) == 2
        assert said in capsys.readouterr().err


def test_a_link_leads_to_a_folder_of_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "a (b) #1 100%"
    folder.mkdir()
    (folder / "report.html").write_text("<p>")
    link = compare._page(folder, tmp_path / "compare.html")
    assert link == "[page](a%20%28b%29%20%231%20100%25/report.html)"
    assert '<a href="a%20%28b%29%20%231%20100%25/report.html">' in inline(link)
