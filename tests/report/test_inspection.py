"""`regcache inspect`: what is in a bundle, and what differs between two."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from regcache_deploy.cli.main import main
from regcache_deploy.report.document import load_document
from regcache_deploy.report.inspection import inspect_bundle
from regcache_deploy.report.inspection_text import difference_lines, differences, lines_of
from regcache_deploy.work.format import for_rich
from regcache_engines.bundle import Bundle
from regcache_export.bundle import add_files, seal_bundle, write_bundle
from regcache_export.merge import block_tokens
from regcache_export.spec import EncoderSpec
from regcache_export.stem import StemStep
from tests.cpp.damaging import flip
from tests.tiny_plans import CHOICE, SPEC, tiny_plan

WITHOUT = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnx", "onnx_ir", "open_clip", "torchvision", "rich"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Block())
from regcache_deploy.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def certificate(spec: EncoderSpec) -> bytes:
    nodes = [{"node": "a", "elements": 90, "different": 2}]
    return json.dumps({"encoder": spec.to_json(), "nodes": nodes, "images": 3}).encode()


def made(folder: Path, name: str, accuracy: float, spec: EncoderSpec = SPEC) -> Path:
    """A run folder: bundle, result, benchmark."""
    plan = tiny_plan()
    place = folder / name
    draft = write_bundle(plan, place / f"{name}.draft")
    add_files(draft, {"certificate.json": certificate(spec)})
    bundle = seal_bundle(
        draft,
        place / f"{name}.regcache",
        {"accuracy": {"fp32": 0.9, "deployed": accuracy}, "agreement": {"mean_cosine": 1.0,
         "min_cosine": 0.5, "top1": 0.75}},
    )  # fmt: skip
    result = {
        "bundle": f"{name}.regcache",
        "metric": "top1",
        "n_eval": 40,
        "sensitive_layer": "blocks.1.mlp.fc2",
        "speed": {"value": 2.5, "low": 2, "high": 3, "engine": "onnxruntime", "batch": 1,
                  "threads": 1, "cpu": "a CPU"},
        "paired": {"deployed": {"difference": -1.5, "low": -2, "high": 0, "p_value": 0.25}},
        "token_norms": {
            "layer": "blocks.1.mlp.fc2", "before": {"largest": 99.0}, "after": {"largest": 3.0}
        },
    }  # fmt: skip
    (place / "result.json").write_text(json.dumps(result))
    (place / "bench.csv").write_text(
        "bundle,engine,precision,threads,infer_batch_size,infer_step_time,infer_samples_per_sec,"
        f"reason\n{name},onnxruntime,int8,2,1,{accuracy},1142.9,\n{name},cuda,int8,2,1,,,no GPU\n"
    )
    return bundle


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("a"), "a", 0.875)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("b"), "a", 0.75)


def test_facts(one: Path) -> None:
    facts = inspect_bundle(one)
    assert facts["encoder"]["depth"] == SPEC.depth
    assert facts["encoder"]["tokens"] == SPEC.num_tokens
    tokens = [(b.attention, b.mlp) for b in block_tokens(SPEC, CHOICE)]
    assert [(b["attention"], b["mlp"]) for b in facts["tokens_by_block"]] == tokens
    assert facts["regcache"]["prefix_count"] == CHOICE.prefix_count
    assert facts["sinks"]["absent_while_ranges_are_set"] == CHOICE.range_delete_count
    sizes = {path.name: path.stat().st_size for path in one.iterdir()}
    assert facts["sizes"]["model"] == sizes["model.onnx"]
    assert facts["sizes"]["whole"] == sum(sizes.values()) - sizes["manifest.json"]
    assert facts["sizes"]["text"] is None
    assert set(facts["files"]) == set(sizes) - {"manifest.json"}
    assert facts["certificate"]["different_codes"] == 2
    assert facts["head"] == {"classes": 4, "named": True, "logit_scale": 50.0}
    assert facts["made"]["created"].endswith("+00:00")
    assert facts["accuracy"]["images"] == 40
    assert facts["speed"]["rows"][0]["infer_step_time"] == "0.875"
    assert inspect_bundle(one.parent) == facts, "the run's folder stands for its bundle"


def test_the_page_says_what_there_is(one: Path) -> None:
    text = "\n".join(lines_of(inspect_bundle(one)))
    for words in (
        "tiny", "32x24 pixels", "3 cached keys and values from block 1", "4 tokens deleted",
        "13 9 9 -> 9", "top1 on 40 images", "deployed 87.50 %", "McNemar p 0.25",
        "top-1 identical on 75.00 %", "99.00 -> 3.00", "4 classes",
        "batch 1, threads 2, 0.88 ms, 1142.9 images/s",
        "2.50 [2.00, 3.00] in onnxruntime",
        "2 of 90 codes different", "SHA-256 model.onnx",
    ):  # fmt: skip
        assert words in text, words
    assert "cuda" not in text
    facts = inspect_bundle(one) | {"text": {"left_out": "it cannot be built"}}
    assert "none: it cannot be built" in "\n".join(lines_of(facts))
    narrow = lines_of(inspect_bundle(one), width=80)
    joined = " ".join(" ".join(narrow).split())
    assert joined == " ".join(text.split())
    long = [line for line in narrow if len(line) > 80]
    assert all(line.startswith("SHA-256") or "/" in line for line in long)  # never broken


def test_figures_of_other_files_are_not_this_bundle_s(tmp_path: Path) -> None:
    bundle = made(tmp_path, "a", 0.5)
    rows = (
        "bundle,model_sha256,engine,precision,threads,infer_batch_size,infer_step_time,"
        "infer_samples_per_sec\n"
        "b,1,onnxruntime,int8,2,1,77,1\n"  # another bundle of the same benchmark
        "a,2,onnxruntime,int8,2,1,88,1\n"  # before it was exported again
    )
    (bundle.parent / "bench-2.csv").write_text(rows)
    (bundle.parent / "peers.csv").write_text("peer,title,b1_infer_step_time\nort,ORT,99\n")
    facts = inspect_bundle(bundle)
    assert [row["engine"] for row in facts["speed"]["rows"]] == ["onnxruntime", "cuda"]
    text = "\n".join(lines_of(facts))
    assert "0.50 ms" in text
    assert not {"77.00 ms", "88.00 ms", "99.00 ms"} & set(text.split(", "))


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("latin-1", r"caf\udce9 \u0436 12 345"), ("utf-8", "caf\\udce9 ж 12\u202f345")],
)
def test_any_name_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, shown: str
) -> None:
    bundle = write_bundle(tiny_plan(), tmp_path / "caf\udce9 ж 12\u202f345.regcache")
    stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding)  # strict, unlike pytest's
    monkeypatch.setattr(sys, "stdout", stdout)
    assert main(["inspect", str(bundle)]) == 0
    stdout.seek(0)
    assert shown in stdout.read()


def test_a_bundle_away_from_its_run_does_not_guess_its_metric(tmp_path: Path) -> None:
    """Searched for less error of the features, and judged by classes."""
    for objective, words in (("mse", "score: fp32 0.90000"), ("top1", "top1: fp32 90.00 %")):
        plan = replace(tiny_plan(), provenance={"search_objective": objective})
        draft = write_bundle(plan, tmp_path / "draft")
        bundle = seal_bundle(draft, tmp_path / f"{objective}.regcache", {"accuracy": {"fp32": 0.9}})
        assert words in " ".join("\n".join(lines_of(inspect_bundle(bundle))).split())
    facts = inspect_bundle(made(tmp_path, "a", 0.5))
    facts["accuracy"] |= {"metric": "cosine"}
    assert "McNemar" not in "\n".join(lines_of(facts))


def test_long_values_are_cut_where_they_differ() -> None:
    place = "/data/imagenet/ILSVRC2012/train/synsets/of/a/hundred/classes/"
    a, b = ({"bundle": name, "searched": f"{place}{name}"} for name in ("one", "two"))
    (row,) = difference_lines(a, b, differences(a, b))[1:]
    assert "/one" in row
    assert "/two" in row
    assert place not in row
    digests = {"bundle": "a", "x": "0" * 64}, {"bundle": "b", "x": "1" * 64}
    (row,) = difference_lines(*digests, differences(*digests))[1:]
    assert row.split() == ["x", "0" * 37 + "...", "1" * 37 + "..."]


def test_a_name_moves_no_cursor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It could hide the lines above it, a warning for example."""
    name = "x\x1b[2A\x1b[0J\x9b31m\rclean"
    one = write_bundle(
        replace(tiny_plan(), provenance={"model": name, "caution": name}), tmp_path / "a.regcache"
    )
    other = write_bundle(tiny_plan(), tmp_path / "b.regcache")
    assert main(["inspect", str(one)]) == 0
    assert main(["inspect", str(one), str(other)]) == 0
    assert main(["inspect", str(tmp_path / name)]) == 5
    found = capsys.readouterr()
    for text in (found.out, found.err):
        assert r"x\x1b[2A\x1b[0J\x9b31m" in text
        assert not {"\x1b", "\x9b", "\r"} & set(text)
    assert for_rich(name) == r"x\x1b[2A\x1b[0J\x9b31m\rclean"


def test_a_result_of_an_earlier_file_is_not_this_bundle_s(tmp_path: Path) -> None:
    """An export into the same folder was killed between its bundle and its result."""
    bundle = made(tmp_path, "a", 0.5)
    path = bundle.parent / "result.json"
    result = json.loads(path.read_text())
    own = Bundle.open(bundle).manifest["files"]["model.onnx"]["sha256"]
    for of, images in ((own, 40), ("0" * 64, None)):
        path.write_text(json.dumps(result | {"model_sha256": of}))
        facts = inspect_bundle(bundle)
        assert facts["accuracy"]["images"] == images
        assert (facts["speed"] is None) == (images is None)
        document = load_document(bundle.parent)
        told = [line for line in document.get("warnings", ()) if "did not finish" in line]
        assert bool(told) == (images is None)


def test_a_stem_is_told_with_its_share(tmp_path: Path) -> None:
    stem = (StemStep("conv", channels=SPEC.width, kernel=8, stride=8),)
    spec = replace(SPEC, stem=stem)
    facts = inspect_bundle(made(tmp_path, "a", 0.5, spec))
    share = facts["encoder"]["stem"]["float_multiplications"]
    assert share == pytest.approx(110_592 / (110_592 + 3 * spec.block_multiplications))
    (line,) = (line for line in lines_of(facts) if line.startswith("encoder"))
    assert f"convolutional stem in float ({share:.0%} of" in line
    assert "stem" not in inspect_bundle(made(tmp_path, "b", 0.5))["encoder"]


def test_two_side_by_side(one: Path, other: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {row["name"]: row for row in differences(inspect_bundle(one), inspect_bundle(other))}
    assert found["accuracy.scores.deployed"]["a"] == 0.875
    assert found["speed.rows.0.infer_step_time"]["b"] == "0.75"
    assert "encoder.depth" not in found
    assert "bundle" not in found
    assert main(["inspect", str(one), str(other)]) == 0
    text = capsys.readouterr().out
    (line,) = (line for line in text.splitlines() if line.startswith("accuracy.scores.deployed"))
    assert "-0.125 (-14.3%)" in line
    assert main(["inspect", str(one), str(one)]) == 0
    assert "hold the same" in capsys.readouterr().out
    assert main(["inspect", str(one), str(other), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in document["differences"]} == set(found)


def test_without_torch_onnx_and_rich(one: Path) -> None:
    command = [sys.executable, "-c", WITHOUT, "inspect", str(one), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(json.dumps(inspect_bundle(one)))


def test_a_bundle_alone_says_less(tmp_path: Path) -> None:
    facts = inspect_bundle(write_bundle(tiny_plan(), tmp_path / "x.regcache"))
    absent = ("encoder", "tokens_by_block", "accuracy", "speed", "certificate", "text")
    assert [facts[name] for name in absent] == [None] * len(absent)
    text = "\n".join(lines_of(facts))
    assert "nobody can verify" in text
    assert "not described" in text


def test_mistakes(one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def inspect(*paths: Any) -> tuple[int, str]:
        code = main(["inspect", *map(str, paths)])
        return code, capsys.readouterr().err

    assert inspect(one, one, one)[0] == 2
    assert inspect(tmp_path / "none")[0] == 5
    for name in ("a", "b"):
        write_bundle(tiny_plan(), tmp_path / f"{name}.regcache")
    code, said = inspect(tmp_path)
    assert (code, "several bundles" in said) == (2, True)
    flip(tmp_path / "a.regcache/model.onnx")
    assert inspect(tmp_path / "a.regcache")[0] == 5
