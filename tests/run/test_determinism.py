"""The same seed gives the same bytes: with one thread and two, twice, and behind a kill.

What is compared is what is deployed and what it was decided by: the ONNX file, the certificate with
its codes, the plan, and the documents without their times and paths. Other Pythons are tried where
`REGCACHE_PYTHONS` names interpreters that have the project's dependencies.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import onnx
import pytest

from regcache_export.certificate_files import CERTIFICATE
from tests.attacks.fault import FIXED, SMALL, Place
from tests.attacks.kit import Kit, make_kit
from tests.attacks.watch import ROOT

TIMES = {"seconds", "time", "date", "created"}
TIMES |= {"versions", "python", "tool_version", "threads", "output"}
TOOL_VERSION = "regcache.tool_version"
PYTHONS = [path for path in os.environ.get("REGCACHE_PYTHONS", "").split(os.pathsep) if path]


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return make_kit(tmp_path_factory.mktemp("kit"))


APART = ("files", "command", "resumed_block_forwards", "speed", "peak_memory_bytes", "memory_bytes")
"""What is no result: hashes of documents with times, work of a killed run, and measurements."""


@pytest.fixture
def place(kit: Kit, tmp_path: Path) -> Place:
    return Place(tmp_path / "place", kit)


def words(place: Place, threads: int) -> list[str]:
    """A whole export. The output folder is in the plan, so it is always the same."""
    images, encoder = place.given / "images", place.given / "encoder.safetensors"
    if not images.exists():
        place.images()
        place.encoder()
    small = [word for word in SMALL if word not in ("--threads", "1")]
    start = ["export", "--model", "natural-vit-s14", "--pretrained", str(encoder), "-q"]
    start += ["--data", str(images), "--output", str(place.out), *small, *FIXED]
    return [*start, "--threads", str(threads)]


def start(place: Place, threads: int, python: str = sys.executable) -> subprocess.Popen[bytes]:
    variables = os.environ | {
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("", "export", "engines")),
        "OMP_NUM_THREADS": str(threads),
    }
    command = [python, "-m", "regcache_deploy.cli.main", *words(place, threads)]
    return subprocess.Popen(command, env=variables)


def export(place: Place, threads: int, python: str = sys.executable) -> dict[str, Any]:
    """Run it to its end; what it wrote, times apart. The folder is gone afterwards."""
    process = start(place, threads, python)
    assert process.wait(timeout=300) == 0
    found = contents(place.out)
    place.out.rename(place.root / f"done-{time.monotonic_ns()}")
    return found


def contents(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.is_dir() or name.startswith("parts") or name.endswith(".csv"):
            continue
        if path.suffix == ".json":
            found[name] = without_times(json.loads(path.read_bytes()))
            if path.name == CERTIFICATE:
                del found[name]["manifest"]["provenance"]  # a hash of times, too
        else:
            found[name] = path.read_bytes()
    return found


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: without_times(inner)
            for key, inner in value.items()
            if not any(word in key.split("_") or word == key for word in TIMES) and key not in APART
        }
    if isinstance(value, list):
        return [without_times(inner) for inner in value]
    return value


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, content in one.items():
        assert content == other[name], name


@pytest.mark.slow
def test_threads_repetition_and_a_kill_change_no_byte(place: Place) -> None:
    first = export(place, 1)
    assert any(name.endswith("model.onnx") for name in first)
    assert any(name.endswith("certificate.json") for name in first)
    same(first, export(place, 1))
    same(first, export(place, 2))
    process = start(place, 1)
    while not list(place.out.glob("parts/*")):
        assert process.poll() is None, "finished before it could be killed"
        time.sleep(0.01)
    process.kill()
    process.wait()
    same(first, export(place, 2))


@pytest.mark.slow
@pytest.mark.skipif(not PYTHONS, reason="REGCACHE_PYTHONS names no other interpreters")
def test_other_pythons_give_the_same_bytes(place: Place) -> None:
    first = without_tools(export(place, 1))
    for python in PYTHONS:
        same(first, without_tools(export(place, 1, python)))


def without_tools(found: dict[str, Any]) -> dict[str, Any]:
    """Which torch, numpy and matplotlib there are differs between Pythons, and is written down.

    ONNX Runtime must be one: its features with optimizations are in the certificate.
    """
    found = {name: content for name, content in found.items() if not name.endswith(".svg")}
    for name, content in found.items():
        if name.endswith("certificate.json"):
            del content["simulation"], content["environment"]
        if name == "result.json":
            del content["file_mib"]  # of a file with the tool's version in it
        if name.endswith("model.onnx"):
            model = onnx.load_from_string(content)
            kept = [entry for entry in model.metadata_props if entry.key != TOOL_VERSION]
            assert len(kept) == len(model.metadata_props) - 1
            del model.metadata_props[:]
            model.metadata_props.extend(kept)
            model.producer_version = ""
            found[name] = model.SerializeToString(deterministic=True)
    return found
