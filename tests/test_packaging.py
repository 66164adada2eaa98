"""What is shipped, and that imports between the three rooms go one way."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import regcache_deploy
from regcache_deploy.cli import doctor

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS: dict[str, list[str]] = PYPROJECT["project"]["optional-dependencies"]

ROOMS = {
    "regcache_deploy": ROOT,
    "regcache_export": ROOT / "export",
    "regcache_engines": ROOT / "engines",
}
TRAINING = {"torch", "torchvision", "open_clip", "timm", "sklearn", "scipy", "regcache_deploy"}
FORBIDDEN = {
    "regcache_export": TRAINING,
    "regcache_engines": TRAINING | {"onnx", "onnx_ir", "onnxslim", "regcache_export"},
}


def sources(package: str) -> list[Path]:
    return sorted((ROOMS[package] / package).rglob("*.py"))


def imported_names(path: Path) -> set[str]:
    """First parts of all absolute imports of a file, also those inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", ROOMS)
def test_packages_import_from_where_pyproject_says(package):
    module = importlib.import_module(package)
    assert module.__file__ is not None
    assert Path(module.__file__).parent == ROOMS[package] / package
    where = PYPROJECT["tool"]["setuptools"]["packages"]["find"]["where"]
    assert ROOMS[package] in [(ROOT / entry).resolve() for entry in where]


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_forbidden_import_anywhere(package):
    for path in sources(package):
        assert imported_names(path) & FORBIDDEN[package] == set(), path


@pytest.mark.parametrize("package", FORBIDDEN)
def test_every_module_imports_where_the_forbidden_is_missing(package):
    """Also through other packages: an import blocker stands in for a bare edge device."""
    modules = [
        ".".join(path.relative_to(ROOMS[package]).with_suffix("").parts)
        for path in sources(package)
    ]
    code = f"""
import importlib, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {sorted(FORBIDDEN[package])}:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)

sys.meta_path.insert(0, Blocker())
for name in {modules}:
    importlib.import_module(name.removesuffix(".__init__"))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", ROOMS)
def test_no_folder_is_left_out_of_the_wheel(package):
    for path in sources(package):
        assert (path.parent / "__init__.py").exists(), f"{path.parent} has no __init__.py"


def test_demo_data_is_shipped():
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["regcache_deploy.demo"]
    folder = ROOT / "regcache_deploy" / "demo"
    data = [p.name for p in folder.iterdir() if p.is_file() and p.suffix != ".py"]
    assert [n for n in data if not any(fnmatch(n, pattern) for pattern in patterns)] == []


def test_versions_agree(capsys):
    from regcache_deploy.cli.main import main

    attribute = PYPROJECT["tool"]["setuptools"]["dynamic"]["version"]["attr"]
    assert attribute == "regcache_deploy.__version__"
    main(["--version"])
    assert capsys.readouterr().out == f"regcache-deploy {regcache_deploy.__version__}\n"
    try:
        installed = metadata.version("regcache-deploy")
    except metadata.PackageNotFoundError:
        pytest.skip("not installed, running from the sources")
    assert installed == regcache_deploy.__version__


def test_scripts_have_entry_points():
    for target in PYPROJECT["project"]["scripts"].values():
        module, function = target.split(":")
        assert callable(getattr(importlib.import_module(module), function))


class TestDependencies:
    def names(self, requirements: list[str]) -> set[str]:
        return {r.split(">=")[0].split("[")[0].split(";")[0].strip() for r in requirements}

    def test_the_base_is_what_an_edge_device_can_take(self):
        assert self.names(PYPROJECT["project"]["dependencies"]) == {"numpy", "safetensors"}

    def test_security_floors(self):
        assert "torch>=2.10" in EXTRAS["search"]
        assert "onnx>=1.21" in EXTRAS["export"]

    def test_onnxruntime_comes_once(self):
        both = {"onnxruntime", "onnxruntime-gpu"}
        for extra, requirements in EXTRAS.items():
            if extra not in ("cpu", "gpu"):
                assert self.names(requirements) & both == set(), extra
        assert [{"extra": "cpu"}, {"extra": "gpu"}] in PYPROJECT["tool"]["uv"]["conflicts"]

    def test_doctor_speaks_of_extras_that_exist(self):
        assert {extra for extras in doctor.USES.values() for extra in extras} <= EXTRAS.keys()
