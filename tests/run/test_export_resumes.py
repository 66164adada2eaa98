"""A killed export goes on where it stopped; a finished search is baked without another one."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regcache_deploy.cli.main import main
from regcache_deploy.run.finished import changed_since
from regcache_engines.bundle import Bundle

SEARCH = ["--baseline", "naive", "--search-images", "48", "--calibration-images", "8"]
SEARCH += ["--limit", "40", "--threads", "1"]
EXPORT = ["--certificate-images", "4"]

MOMENTS: dict[str, tuple[Callable[[Path], bool], signal.Signals]] = {
    "before anything": (lambda out: True, signal.SIGKILL),
    "in the sensitivity": (lambda out: _parts(out, "proxy") > 0, signal.SIGKILL),
    "in the race": (lambda out: _parts(out, "trial") > 4, signal.SIGTERM),
    "in the corners": (lambda out: _parts(out, "embedding") > 1, signal.SIGINT),
    "with a draft": (lambda out: any(out.glob("*.unverified")), signal.SIGKILL),
}


def _parts(out: Path, name: str) -> int:
    return len(list((out / "parts").glob(f"{name}-*")))


def start(out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "regcache_deploy.cli.main", "export", *SEARCH, *EXPORT]
    command += ["--output", str(out), "--json"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    environment["SOURCE_DATE_EPOCH"] = "0"  # else the manifest says when it was sealed
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)


def contents(out: Path) -> dict[str, str]:
    """Hash of every file of the bundle and of the plan; paths differ, so provenance is cut out."""
    found = {}
    bundle = next(out.glob("*.regcache"))
    for path in [*sorted(bundle.iterdir()), out / "plan.safetensors"]:
        data = path.read_bytes().replace(str(out).encode(), b"OUT")
        found[path.name] = hashlib.sha256(data).hexdigest()
    return found


@pytest.mark.slow
def test_an_export_killed_at_five_moments_gives_the_same_bundle(tmp_path: Path) -> None:
    # one folder, moved away when it is finished: the plan holds its name
    out = tmp_path / "run"
    assert start(out).wait(timeout=300) == 0
    wanted = contents(out)
    out.rename(tmp_path / "whole")
    for moment, (reached, number) in MOMENTS.items():
        process, limit = start(out), time.monotonic() + 300
        while not reached(out):
            assert process.poll() is None, f"finished before it could be killed {moment}"
            assert time.monotonic() < limit
            time.sleep(0.002)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert process.returncode in (-number, 128 + number), moment
        assert not any(out.glob("*.regcache")), moment
        if process.returncode > 0:
            assert "run the same command again to continue" in said
    process = start(out)
    printed, said = process.communicate(timeout=300)
    assert process.returncode == 0
    assert said.count("going on from what is finished in") == 1
    cost = json.loads(printed)["search_cost"]
    assert cost["resumed_block_forwards"] > 0.9 * cost["block_forwards"]
    assert contents(out) == wanted
    assert not any(out.glob("*.unverified"))
    assert not any(out.glob("*.rejected"))


def run(arguments: list[str], capsys: Any) -> dict[str, Any]:
    assert main([*arguments, "-q", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_an_export_bakes_the_choice_of_a_search(tmp_path: Path, capsys: Any) -> None:
    searched = tmp_path / "searched"
    readings = ["--delete-at", "mlp_input", "--ranking", "fc2_input"]
    search = run(["search", *SEARCH, *readings, "--output", str(searched)], capsys)
    out = ["--output", str(tmp_path / "baked"), *EXPORT]
    details = json.loads((searched / "search.json").read_text())
    details["made_of"]["search_data_sha256"] = "another"
    (searched / "search.json").write_text(json.dumps(details))
    baked = run(["export", "--from", str(searched), *out], capsys)
    (line,) = (line for line in baked["warnings"] if "--from" in line)
    assert "the search images are no longer those of that search" in line
    choice = ("prefix_block", "prefix_count", "delete_block", "delete_count", "sensitive_layer")
    assert [baked[name] for name in choice] == [search[name] for name in choice]
    assert baked["accuracy"]["regcache"] == search["accuracy"]["regcache"]
    cost = baked["search_cost"]
    assert cost["block_forwards"] < 0.2 * search["search_cost"]["block_forwards"]
    assert Bundle.open(baked["bundle"]).manifest["regcache"]["delete_at"] == "mlp_input"


def test_a_choice_of_other_weights_or_images_says_so(tmp_path: Path) -> None:
    now = {"weights_sha256": "a", "search_data_sha256": "b"}
    for then, said in [
        ({"made_of": now}, ""),
        ({}, ""),  # of an older release
        ({"made_of": now | {"weights_sha256": "x"}}, "the weights of the model are no longer"),
        ({"made_of": dict.fromkeys(now, "x")}, "model and the search images are no longer"),
    ]:
        (tmp_path / "search.json").write_text(json.dumps(then))
        assert said in "".join(found := changed_since(tmp_path, now))
        assert bool(found) == bool(said)


def test_an_export_from_a_search_takes_no_other_options(tmp_path: Path, capsys: Any) -> None:
    searched = tmp_path / "searched"
    fixed = ["--prefix-block", "2", "--prefix-count", "2", "--delete-count", "0"]
    run(["search", *SEARCH, *fixed, "--output", str(searched)], capsys)
    again = ["export", "--from", str(searched), "--output", str(tmp_path / "baked"), "-q"]
    for words, message in [
        (["--seed", "1"], "seed"),
        (["--delete-count", "3"], "delete-count"),
        (["--bits", "W6A6"], "bits"),
    ]:
        assert main([*again, *words]) == 2
        assert message in capsys.readouterr().err
    assert main([*again[:2], str(tmp_path / "nothing"), *again[3:]]) == 2
    assert "search.json" in capsys.readouterr().err
    assert not (tmp_path / "baked").exists()


def test_a_prefix_in_the_sensitive_block_only(tmp_path: Path, capsys: Any) -> None:
    fixed = ["--prefix-count", "3", "--delete-count", "6", "--prefix-blocks", "only"]
    result = run(["export", *SEARCH, *EXPORT, *fixed, "--output", str(tmp_path / "run")], capsys)
    assert result["prefix_add_blocks"] == [result["sensitive_block"]]
    assert result["agreement"]["mean_cosine"] > 0.9999
    manifest = Bundle.open(result["bundle"]).manifest
    assert manifest["regcache"]["prefix_scope"] == "only"


def test_a_search_without_budget_says_what_it_did_not_try(tmp_path: Path, capsys: Any) -> None:
    arguments = ["search", *SEARCH, "--output", str(tmp_path / "run"), "--budget-fraction", "0.001"]
    assert main([*arguments, "-q"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    document = json.loads((tmp_path / "run" / "search.json").read_text())
    left = len(document["not_tried"])
    assert left > 0
    assert f"{left} choices were not tried" in printed
    assert "raise --search-images or --budget-fraction" in printed
    tried = {trial["delete_count"] for trial in document["trials"]}
    assert tried == set(range(11))
    assert {"fp32", "baseline", "prefix_only", "delete_only", "regcache"} <= {
        name for name, value in document["accuracy"].items() if value is not None
    }


def test_numbers_that_are_fixed_need_no_sensitivity(tmp_path: Path, capsys: Any) -> None:
    fixed = ["--prefix-block", "2", "--prefix-count", "2", "--delete-count", "0"]
    document = run(["search", *SEARCH, *fixed, "--output", str(tmp_path / "run")], capsys)
    assert document["sensitivity"]["layers"] == {}
    assert document["sensitive_layer"] == "blocks.2.mlp.fc2"
    named = ["--delete-count", "6", "--prefix-count", "2", "--sensitive-layer", "blocks.1.fc2"]
    document = run(["search", *SEARCH, *named, "--output", str(tmp_path / "named")], capsys)
    assert document["sensitivity"]["layers"] == {}
    assert (document["sensitive_layer"], document["delete_block"]) == ("blocks.1.mlp.fc2", 1)
