"""What is built and shipped: the wheel's and the image's content, and the workflow's commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import regcache_deploy

ROOT = Path(__file__).resolve().parent.parent


def test_the_workflow_runs_the_gate() -> None:
    text = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert commands == [".ci/run", "make docs"]
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    assert {command.split()[1] for command in commands if command.startswith("make")} <= targets


def test_the_image_installs_an_extra_that_exists() -> None:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    (extra,) = re.findall(r"/src\[(\w+)\]", text)
    assert extra in project["optional-dependencies"]
    (command,) = re.findall(r'ENTRYPOINT \["([\w-]+)"\]', text)
    assert command in project["scripts"]


def test_the_changelog_has_the_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{regcache_deploy.__version__}]" in text


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get("REGCACHE_TEST_PACKAGE"),
    reason="builds and installs from the package index: make test-package",
)
def test_wheel_and_sdist_install_and_run(tmp_path: Path) -> None:
    """The Dockerfile's steps, with the wheel that the sdist gives."""
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(tmp_path / "dist"), str(ROOT)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    (sdist,) = (tmp_path / "dist").glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for package in ("regcache_deploy", "regcache_export", "regcache_engines"):
        assert f"{package}/py.typed" in names
    assert "regcache_deploy/report/templates/page.html" in names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]
    with tarfile.open(sdist) as source:
        assert any(name.endswith("/pyproject.toml") for name in source.getnames())
    place = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    install = [str(place / "bin/python"), "-m", "pip", "install", "--quiet", f"{wheel}[cpu]"]
    subprocess.run(install, check=True, cwd=tmp_path)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for words in (["--version"], ["doctor"], ["verify", "--help"]):
        done = subprocess.run(
            [str(place / "bin/regcache"), *words],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
            check=True,
        )
        assert "Traceback" not in done.stderr
    version = subprocess.run(
        [str(place / "bin/regcache"), "--version"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=True,
    )
    assert version.stdout.split()[-1] == regcache_deploy.__version__
