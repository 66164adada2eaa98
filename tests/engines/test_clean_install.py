"""What `pip install '.[cpu]'` brings runs a bundle: in an environment of its own, from the index.

It takes a minute and a package index, so `make test-clean` alone runs it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engines.deployed import COMMANDS, TEXT_COMMANDS, deployed_folder

ROOT = Path(__file__).parent.parent.parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("REGCACHE_CLEAN_INSTALL"),
        reason="installs from the package index: make test-clean",
    ),
]

LIBRARY = """
import sys
import regcache_engines

with regcache_engines.open(sys.argv[1]) as clip:
    (best, *_), = clip.classify(sys.argv[2], top=1)
    assert best.label in clip.labels
    assert clip.embed_images([sys.argv[2]] * 3).shape == (3, clip.output_dim)
    assert clip.similarity([sys.argv[2]], ["a cat", "the beach"]).shape == (1, 2)
print(sorted(set(sys.modules) & {"torch", "onnx", "rich", "scipy", "regcache_export"}))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the programs of a fresh virtual environment."""
    place = tmp_path_factory.mktemp("clean")
    subprocess.run([sys.executable, "-m", "venv", place / "venv"], check=True)
    programs, source = place / "venv" / "bin", place / "source"
    leave = shutil.ignore_patterns(".*", "build", "runs", "node_modules", "*.egg-info", "results")
    shutil.copytree(ROOT, source, ignore=leave)  # pip builds where the sources are
    subprocess.run(
        [programs / "python", "-m", "pip", "install", "--quiet", f"{source}[cpu]"],
        check=True,
        cwd=place,
        env=without_ours(),
    )
    return programs


def without_ours() -> dict[str, str]:
    """The environment, without what this interpreter imports from."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    clean = without_ours()
    return subprocess.run(
        list(map(str, words)), capture_output=True, text=True, env=clean, cwd=cwd, check=False
    )


def test_commands_and_library_run(environment: Path, tmp_path: Path) -> None:
    listed = run(environment / "python", "-m", "pip", "list", "--format=json", cwd=tmp_path)
    names = {entry["name"].lower() for entry in json.loads(listed.stdout)}
    assert not names & {"torch", "onnx", "scipy", "open-clip-torch", "timm", "torchvision"}
    folder = deployed_folder(tmp_path)
    for words in (*COMMANDS, *TEXT_COMMANDS):
        done = run(environment / "regcache", *words, cwd=folder)
        assert done.returncode == 0, (words, done.stderr)
        assert "Traceback" not in done.stderr
    image = folder / "data" / "cat" / "0.png"
    done = run(environment / "python", "-c", LIBRARY, folder / "t.regcache", image, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


def test_the_wheel_is_typed(environment: Path, tmp_path: Path) -> None:
    code = (
        "from importlib.resources import files;"
        "print([(files(p) / 'py.typed').is_file() for p in"
        " ('regcache_engines', 'regcache_export', 'regcache_deploy')])"
    )
    assert run(environment / "python", "-c", code, cwd=tmp_path).stdout == "[True, True, True]\n"
