"""The tables on stdout: what they say of labels, of nothing tried, and of odd paths."""

from __future__ import annotations

import io
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from regcache_deploy.cli.calibrate import print_ranges
from regcache_deploy.encoders.regcache import RegCacheConfig
from regcache_deploy.evaluation import PairedComparison
from regcache_deploy.report.result import ExportResult
from regcache_deploy.report.terminal import print_result, print_search
from regcache_deploy.search.result import Trial
from regcache_deploy.search.statistics import Difference

NOTHING = RegCacheConfig(1, 0, 1, 0)
SCORE: Any = type("Score", (), {"value": 0.5, "fidelity": 0.5})


def trials(*counts: tuple[int, int]) -> list[Trial]:
    """Evaluations of these prefix and delete counts."""
    return [
        Trial("race", RegCacheConfig(1, prefix, 1, delete), SCORE, 12) for prefix, delete in counts
    ]


def a_result(**changes: Any) -> ExportResult:
    """Of a search with a prefix and a deletion, made up; of top-1."""
    found = ExportResult(
        model="tiny",
        baseline="naive",
        bits="W8A8",
        sensitive_layer="blocks.1.mlp.fc2",
        prefix_block_candidates=(0, 1),
        config=RegCacheConfig(1, 2, 1, 3),
        depth=4,
        search_accuracy=0.7,
        search_metric="top1",
        metric="top1",
        n_search=12,
        n_eval=34,
        accuracy={"fp32": 0.9, "regcache": 0.875},
        paired={"regcache": PairedComparison(34, -2.5, -4.0, -1.0, 3, 1, 0.04)},
        results_csv=Path("results.csv"),
        agreement={"mean_cosine": 0.99999, "min_cosine": 0.9999},
        search_cost={"block_forwards": 1234, "exhaustive_block_forwards": 5678},
        details={
            "sensitivity": {"proxy": {"block": 1}},
            "ranking_recall": {"1": 1.0},
            "ablation": [],
            "gain": {"p_value": 0.25},
        },
        trials=trials((0, 0), (2, 0), (0, 3)),
    )
    return replace(found, **changes)


def one_line(text: str) -> str:
    """The output without the breaks and frames of tables."""
    return "".join(c for c in text if c not in "\n │┃")


def test_top1_is_counted_in_images(capsys: pytest.CaptureFixture[str]) -> None:
    print_search(a_result())
    text = " ".join(capsys.readouterr().out.split())
    for words in ("points [95 %]", "lost /", "McNemar", "-2.50 [-4.00, -1.00]", "3 / 1"):
        assert words in text


def test_without_labels_there_are_no_points_and_no_images_won(
    capsys: pytest.CaptureFixture[str],
) -> None:
    paired = {"regcache": Difference(-0.00123, -0.00234, -0.00012, 0.04)}
    accuracy = {"fp32": 1.0, "regcache": 0.99877}
    print_search(a_result(metric="cosine", accuracy=accuracy, paired=paired))
    text = " ".join(capsys.readouterr().out.split())
    for words in ("cosine [95 %]", "-0.00123 [-0.00234, -0.00012]", "0.04", "0.99877"):
        assert words in text
    for words in ("points", "lost", "None", "McNemar"):
        assert words not in text


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ([(0, 0)], "No prefix and no deletion: neither was asked for."),
        ([(0, 0), (4, 0)], "No gain: no prefix beat the baseline alone"),
        ([(0, 0), (2, 0), (0, 3)], "No gain: no prefix and no deletion beat the baseline"),
    ],
)
@pytest.mark.parametrize("show", [print_search, print_result])
def test_no_gain_is_said_of_what_was_tried(
    show: Any,
    counts: list[tuple[int, int]],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    show(a_result(config=NOTHING, trials=trials(*counts)))
    text = " ".join(capsys.readouterr().out.split())
    assert words in text
    assert ("p = 0.25" in text) is (show is print_search and len(counts) > 1)


@pytest.mark.parametrize("show", [print_search, print_result])
def test_paths_are_shown_as_they_are(show: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # strict, unlike pytest's
    monkeypatch.setattr(sys, "stdout", stdout)
    place = "/data/[set1]/:100:"
    show(
        a_result(
            model=f"{place}/model",
            caution=f"weights of {place}",
            results_csv=Path(place, "caf\udce9.csv"),
            bundle=Path(place, "b.regcache"),
            warnings=(f"{place}/caf\udce9.jpg could not be read",),
        )
    )
    stdout.seek(0)
    text = one_line(stdout.read())
    for words in (
        f"{place}/model,",
        f"weightsof{place}.",
        f"{place}/caf\\udce9.csv",
        f"{place}/b.regcache" if show is print_result else "",
        f"warning:{place}/caf\\udce9.jpg",
    ):
        assert words in text


@pytest.mark.parametrize("show", [print_search, print_result])
def test_commands_can_be_typed_as_printed(show: Any, capsys: pytest.CaptureFixture[str]) -> None:
    place = Path("runs/it's mine")
    bundle = place / "b.regcache"
    show(a_result(results_csv=place / "results.csv", bundle=bundle))
    lines = capsys.readouterr().out.splitlines()
    commands = [shlex.split(line.removeprefix("next: ")) for line in lines if "next: " in line]
    assert commands[-1] == ["regcache", "report", str(place)]
    build = ["regcache", "build", str(bundle), "--max-drop", "0.5"]
    assert (build in commands) is (show is print_result)


def test_ranges_that_changed_most_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """More images widen ranges: there the smallest ratio is no change at all."""
    ratios = {"a": 1.0, "b": 1.0, "c": 1.0, "d": 3.0, "e": 1.5, "f": 2.0, "g": 1.2, "h": 0.8}
    print_ranges(
        {
            "bundle": "b.regcache",
            "images": 9,
            "observer": "minmax",
            "observer_bytes": 0,
            "layers": {name: {"before": 1.0, "after": ratio} for name, ratio in ratios.items()},
        }
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line[0] for line in lines if line.endswith(" %")] == ["d", "f", "e", "h", "g"]


def test_one_of_anything_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    look = {"value": 2.0, "low": 1.9, "high": 2.1, "rounds": 1, "load": 3.0, "cores": 1, "batch": 1}
    bundle = Path("b.regcache")
    print_result(a_result(config=RegCacheConfig(1, 1, 1, 3), bundle=bundle, speed=look))
    text = " ".join(capsys.readouterr().out.split())
    for words in ("1 copy in blocks 1 to 3", "on 1 core, batch 1, by 1 round ("):
        assert words in text


def test_copies_are_counted_and_fidelity_stands_beside(capsys: pytest.CaptureFixture[str]) -> None:
    """Where fidelity would have chosen otherwise, one line says so."""
    ways = ({"title": "A", "value": 0.5, "fidelity": 0.97, "cost": 1.0, "chosen": 1, "tied": 1},)
    counted = a_result(
        metric="instances",
        search_metric="instances",
        fidelity={"fp32": 1.0, "regcache": 0.98765},
        fidelity_way="smoothing",
        reason="A: for a reason",
        ways=ways,
    )
    print_result(counted)
    text = " ".join(capsys.readouterr().out.split())
    for words in ("copy detection on 34", "87.50 %", "-2.50 [", "3 / 1", "0.98765", "50.00 %"):
        assert words in text
    assert "Fidelity to FP32 would have chosen: smoothing." in text
    print_result(replace(counted, fidelity_way=None))
    assert "would have chosen" not in capsys.readouterr().out
