"""The bundle on ARM64, under qemu: C++ and `regcache verify`. Run by `make test-edge`."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.attacks.kit import Kit, make_kit
from tests.cpp.programs import ROOT, dump

EDGE = ROOT / "build/edge"
QEMU = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(QEMU is None, reason="no qemu-aarch64 (Debian: qemu-user)"),
    pytest.mark.skipif(
        not (EDGE / "cpp/regcache_dump").exists(), reason="not built: python engines/cpp/edge.py"
    ),
]


def emulated(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """A program of ARM64; libraries come from the downloaded folder."""
    libraries = os.pathsep.join(f"{EDGE}/{part}" for part in ("cpp", "runtime"))
    variables |= {"LD_LIBRARY_PATH": libraries, "OMP_NUM_THREADS": "1"}
    settings = [word for name, value in variables.items() for word in ("-E", f"{name}={value}")]
    command = [str(QEMU), "-L", str(EDGE / "root"), *settings, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=1200)


def test_cpp_gives_the_same_answer(
    release: Path, bundle: Path, images: list[Path], tmp_path: Path
) -> None:
    """Pixels of every awkward and golden image to the bit; features up to rounding, same class."""
    _, pixels, here = dump(release, bundle, images, tmp_path / "here")
    done = emulated(EDGE / "cpp/regcache_dump", bundle, tmp_path / "there", *images)
    assert done.returncode == 0, done.stderr
    there = np.fromfile(f"{tmp_path}/there.features", np.float32).reshape(here.shape)
    same = np.fromfile(f"{tmp_path}/there.pixels", np.uint8)
    np.testing.assert_array_equal(same, pixels.reshape(-1))
    norms = np.linalg.norm(here, axis=1) * np.linalg.norm(there, axis=1)
    assert ((here * there).sum(1) / norms).min() > 0.9999


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return make_kit(tmp_path_factory.mktemp("kit"))


def test_the_certificate_holds(kit: Kit) -> None:
    """Integer codes of every node, against the numpy reference and the export's own hashes."""
    path = os.pathsep.join(
        [str(EDGE / "site"), *(str(ROOT / p) for p in ("", "export", "engines"))]
    )
    python = next((EDGE / "root/usr/bin").glob("python3.*"))
    words = ["-m", "regcache_deploy.cli.main", "verify", kit.run / "tiny.regcache"]
    home = str(EDGE / "root/usr")
    done = emulated(python, *words, PYTHONPATH=path, PYTHONHOME=home, PYTHONDONTWRITEBYTECODE="1")
    assert done.returncode == 0, done.stderr
    assert "verified on" in done.stdout
