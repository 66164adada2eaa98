"""The program regcache_classify: classes, the JSON document, percentiles, usage."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regcache_deploy.cli.main import main
from regcache_engines import Bundle
from regcache_engines.engine import zero_shot
from regcache_engines.head import head_bytes
from regcache_export.bundle import write_bundle
from regcache_export.targets import GraphOptions
from tests.cpp.damaging import changed, with_text
from tests.cpp.programs import python_results, run
from tests.tiny_plans import tiny_plan


def test_a_quantized_bundle_gives_pythons_classes(
    release: Path, bundle: Path, images: list[Path]
) -> None:
    done = run(release / "regcache_classify", "--json", "--threads", 1, bundle, *images)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    assert [entry["image"] for entry in results] == [str(path) for path in images]
    opened = Bundle.open(bundle)
    _, features = python_results(bundle, images)
    logits = zero_shot(features, opened.text_features, opened.logit_scale).astype(np.float64)
    scores = np.exp(logits - logits.max(1, keepdims=True))
    scores /= scores.sum(1, keepdims=True)
    for entry, row in zip(results, scores, strict=True):
        assert [top["index"] for top in entry["top"]] == list(np.argsort(-row, kind="stable"))
        for top in entry["top"]:
            assert top["label"] == opened.labels[top["index"]]
            assert top["score"] == pytest.approx(row[top["index"]], abs=1e-4)


def test_a_head_of_its_own(
    release: Path, sanitized: Path, bundle: Path, images: list[Path], tmp_path: Path
) -> None:
    made = Path(shutil.copytree(bundle, tmp_path / "text.regcache"))
    with_text(made)
    changed(text={"weights_sha256": "1" * 64})(made)
    rows = np.random.default_rng(0).standard_normal((3, 20)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    head, labels = tmp_path / "head.safetensors", ("uno", "due", "tre")
    head.write_bytes(head_bytes(rows, labels, 20.0, weights_sha256="1" * 64))
    _, features = python_results(made, images[:3])
    wanted = zero_shot(features, rows, 20.0).argmax(axis=1)
    for folder in (release, sanitized):
        done = run(folder / "regcache_classify", "--json", "--head", head, made, *images[:3])
        assert done.returncode == 0, done.stderr
        results = json.loads(done.stdout)["results"]
        assert [entry["top"][0]["label"] for entry in results] == [labels[i] for i in wanted]
    head.write_bytes(head_bytes(rows, labels, 20.0, weights_sha256="2" * 64))
    other = run(release / "regcache_classify", "--head", head, made, images[0])
    assert (other.returncode, "another model's text tower" in other.stderr) == (5, True)
    narrow = rows[:, :8] / np.linalg.norm(rows[:, :8], axis=1, keepdims=True)
    head.write_bytes(head_bytes(narrow, labels, 20.0))
    short = run(release / "regcache_classify", "--head", head, made, images[0])
    assert (short.returncode, "different models" in short.stderr) == (5, True)
    for damaged in (b"", b"x" * 40):
        head.write_bytes(damaged)
        done = run(sanitized / "regcache_classify", "--head", head, made, images[0])
        assert (done.returncode, f"{head} is truncated" in done.stderr) == (5, True)
    done = run(sanitized / "regcache_classify", "--head", tmp_path / "none", made, images[0])
    assert done.returncode == 5


def shape_of(value: Any) -> Any:
    """Keys in their order, and types; of a list its first entry."""
    if isinstance(value, dict):
        return [(key, shape_of(entry)) for key, entry in value.items()]
    if isinstance(value, list):
        return [shape_of(entry) for entry in value[:1]]
    return type(value).__name__


@pytest.mark.parametrize("caution", ["random weights", None])
def test_json_has_the_shape_of_regcache_eval(
    caution: str | None,
    sanitized: Path,
    release: Path,
    images: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = write_bundle(tiny_plan(), tmp_path / "tiny.regcache")
    changed(provenance={"caution": caution} if caution else {})(made)
    files = [path for path in images if path.name.startswith("131x97-RGB")]
    words = [*map(str, [made, "--images", *files]), "--json", "-q"]
    assert main(["eval", *words]) == 0
    python = json.loads(capsys.readouterr().out)
    for folder in (release, sanitized):
        done = run(folder / "regcache_classify", "--json", made, *files)
        assert done.returncode == 0, done.stderr
        cpp = json.loads(done.stdout)
        assert shape_of(cpp) == shape_of(python)
        assert (cpp["on"], cpp["reference"], cpp["results"][0]["on"]) == (["cpp"], "cpp", "cpp")
        for key in ("bundle", "caution", "warnings"):
            assert cpp[key] == python[key]
        for one, other in zip(cpp["results"], python["results"], strict=True):
            assert one["image"] == other["image"]
            for mine, theirs in zip(one["top"], other["top"], strict=True):
                assert mine["label"] == theirs["label"]
                assert mine["score"] == pytest.approx(theirs["score"], abs=1e-5)


def test_the_caution_of_the_bundle_stands_above_the_classes(
    release: Path, images: list[Path], tmp_path: Path
) -> None:
    made = write_bundle(tiny_plan(), tmp_path / "tiny.regcache")
    changed(provenance={"caution": "random weights"})(made)
    done = run(release / "regcache_classify", made, images[0])
    assert done.stdout.splitlines()[:2] == ["Note: random weights.", f"{images[0]} (cpp)"]


def test_file_names_without_utf8(
    sanitized: Path, bundle: Path, images: list[Path], tmp_path: Path
) -> None:
    odd = tmp_path / "\udcff\udcc3(.png"
    odd.write_bytes(images[0].read_bytes())
    missing = tmp_path / "\udc80.png"
    done = run(sanitized / "regcache_classify", "--json", bundle, odd, missing)
    assert done.returncode == 4
    document = json.loads(done.stdout)  # each bad byte is U+FFFD
    assert [Path(entry["image"]).name for entry in document["results"]] == ["\ufffd\ufffd(.png"]
    assert len(document["warnings"]) == 1
    assert "\ufffd.png" in document["warnings"][0]


def test_a_bundle_for_a_fixed_batch(
    sanitized: Path, release: Path, images: list[Path], tmp_path: Path
) -> None:
    plan = tiny_plan()
    fixed = write_bundle(plan, tmp_path / "4.regcache", options=GraphOptions(batch=4))
    free = write_bundle(plan, tmp_path / "free.regcache")
    wanted = json.loads(run(release / "regcache_classify", "--json", free, *images[:5]).stdout)
    done = run(sanitized / "regcache_classify", "--json", "--bench", 2, fixed, *images[:5])
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["bench"]["batch"] == 4
    for one, other in zip(found["results"], wanted["results"], strict=True):
        assert [top["index"] for top in one["top"]] == [top["index"] for top in other["top"]]
    odd = run(release / "regcache_classify", "--bench", 2, "--batch", 3, fixed, images[0])
    assert odd.returncode == 2
    assert "fixed size" in odd.stderr


def test_one_bad_image_does_not_hide_the_others(
    release: Path, bundle: Path, images: list[Path], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"")
    done = run(release / "regcache_classify", "--json", bundle, images[0], bad, images[1])
    assert done.returncode == 4
    assert [e["image"] for e in json.loads(done.stdout)["results"]] == [*map(str, images[:2])]
    assert "bad.jpg is empty" in done.stderr
    assert "bad.jpg is empty" in json.loads(done.stdout)["warnings"][0]


def test_usage_mistakes_end_with_code_2(release: Path) -> None:
    for words in ((), ("x",), ("--bench", "0", "b", "i"), ("--wrong", "b", "i")):
        assert run(release / "regcache_classify", *words).returncode == 2


def test_bench_reports_percentiles_and_memory(
    release: Path, bundle: Path, images: list[Path]
) -> None:
    done = run(release / "regcache_classify", "--json", "--bench", 20, bundle, images[0])
    bench = json.loads(done.stdout)["bench"]
    assert bench["runs"] == 20
    assert 0 < bench["p50_ms"] <= bench["p90_ms"] <= bench["p99_ms"]
    assert bench["images_per_second"] > 0
    assert bench["peak_memory_mib"] > 0


def test_results_that_cannot_be_written_are_no_success(
    release: Path, bundle: Path, images: list[Path]
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    program: list[str | Path]
    for words in ([], ["--json"], ["--help"]):
        program = [release / "regcache_classify", *words, bundle, images[0]]
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                program, stdout=full, stderr=subprocess.PIPE, text=True, check=False
            )
        assert done.returncode == 2
        assert "cannot use the output" in done.stderr
