"""docs/numbers.md names every file of results; the docs' links, commands and figures hold."""

from __future__ import annotations

import ast
import csv
import re
import shlex
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", *DOCS]
RESULTS = ROOT / "benchmarks" / "results"


def test_every_result_is_explained():
    text = (ROOT / "docs" / "numbers.md").read_text(encoding="utf-8")
    files = [p.name for p in (ROOT / "benchmarks" / "results").iterdir() if p.is_file()]
    named = set(re.findall(r"`([\w.*-]+\.(?:csv|md))`", text))
    assert [f for f in files if not any(fnmatch(f, name) for name in named)] == []
    assert [name for name in named if not any(fnmatch(f, name) for f in files)] == []


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def options_of(script: Path) -> dict[str, bool]:
    """Option of a benchmark -> whether it is required, read from its source: no torch needed."""
    found = {}
    for call in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if not isinstance(call, ast.Call) or getattr(call.func, "attr", "") != "add_argument":
            continue
        name = ast.literal_eval(call.args[0])
        if name.startswith("--"):
            required = [k.value for k in call.keywords if k.arg == "required"]
            found[name] = bool(required and ast.literal_eval(required[0]))
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_commands_of_the_benchmarks_would_start(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for script, rest in re.findall(r"python (benchmarks/\w+\.py)([^`\n]*)", text):
        known = options_of(ROOT / script)
        words = shlex.split(rest, comments=True)
        given = {word for word in words if word.startswith("--")}
        assert given <= known.keys(), (script, rest)
        assert {name for name, required in known.items() if required} <= given, (script, rest)


def peers(model: str) -> dict[str, dict[str, Any]]:
    (path,) = RESULTS.glob(f"peers-{model}-amd-epyc-2cores-*.csv")
    with path.open(newline="", encoding="utf-8") as file:
        return {row["peer"]: row for row in csv.DictReader(file)}


def figures(row: dict[str, Any], what: str, *batches: int) -> list[str]:
    return [f"{float(row[f'b{batch}_{what}']):.1f}" for batch in batches]


def test_the_paragraph_of_figures_is_that_of_the_csv() -> None:
    text = (ROOT / "docs" / "numbers.md").read_text(encoding="utf-8")
    rows = peers("vit-b-16")
    for words, name in (
        ("our tuned file under `auto` is {}", "tuned_auto"),
        ("the portable one {} in ONNX Runtime", "portable_auto"),
        ("{} in OpenVINO and", "openvino_auto"),
        ("and {} there with its default hint", "openvino_auto_default"),
        ("NNCF's file in OpenVINO {}", "nncf"),
        ("with the default hint {};", "nncf_default"),
        ("OpenVINO's bf16 on the float file {}", "openvino_default"),
        ("`quantize_dynamic` {}", "dynamic"),
        ("ModelOpt's {}", "modelopt_int8"),
    ):
        assert words.format(" / ".join(figures(rows[name], "speedup", 1, 8, 32))) in text


def test_the_readme_says_what_is_fastest() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = peers("vit-b-16")
    for words, name in (
        ("random weights and two threads it takes {} ms at batch 1 and 8", "openvino_auto_default"),
        ("where NNCF's takes {} in the same way", "nncf_default"),
        ("In ONNX Runtime the tuned file takes {}:", "tuned_auto"),
    ):  # fmt: skip
        assert words.format(" and ".join(figures(rows[name], "infer_step_time", 1, 8))) in text
    quantized = [r for r in rows.values() if r["bits"] == "W8A8" and r["b8_infer_step_time"]]
    fastest = min(quantized, key=lambda row: float(row["b8_infer_step_time"]))
    assert fastest["peer"] == "openvino_auto_default"


def test_auto_beside_nncf_is_paired() -> None:
    text = (ROOT / "docs" / "when-regcache-does-not-help.md").read_text(encoding="utf-8")
    (path,) = RESULTS.glob("peer_accuracy-demo-*.csv")
    with path.open(newline="", encoding="utf-8") as file:
        row = next(r for r in csv.DictReader(file) if r["peer"] == "tuned_auto")
    gain, low, high = (float(row[f"nncf_acc1_{n}"]) for n in ("difference", "low", "high"))
    words = f"{gain:+.1f} [{low:+.1f}, {high:+.1f}] points, {row['nncf_lost']} images lost and"
    assert f"{words} {row['nncf_won']} won" in text
    assert low <= 0 <= high  # "level, not ahead"
