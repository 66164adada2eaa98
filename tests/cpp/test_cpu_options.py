"""Products are exact on every CPU: C++ asks for it where u8s8 products saturate, as Python does."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from regcache_engines.cpu_flags import may_saturate
from regcache_engines.onnxruntime_session import EXACT_PRODUCTS, SLEEP_BETWEEN_CALLS
from tests.cpp.programs import dump, run

QEMU = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")


def test_the_options_are_those_of_python(
    release: Path, bundle: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "REGCACHE_REAL_ONNXRUNTIME", str(release / "onnxruntime/libonnxruntime.so.1")
    )
    fake = str(release / "fake_gpu.so")
    done = run(release / "regcache_classify", bundle, images[0], runtime=fake)
    assert done.returncode == 0, done.stderr
    assert f"session {SLEEP_BETWEEN_CALLS}=1\n" in done.stderr
    assert (f"session {EXACT_PRODUCTS}=1\n" in done.stderr) is may_saturate()


@pytest.mark.slow
@pytest.mark.skipif(QEMU is None, reason="no qemu-x86_64 (Debian: qemu-user-static)")
def test_a_cpu_without_vnni_gives_the_same_features(
    release: Path, bundle: Path, images: list[Path], tmp_path: Path
) -> None:
    _, _, here = dump(release, bundle, images[:4], tmp_path / "here")
    emulated = [str(QEMU), "-cpu", "Haswell", str(release / "regcache_dump")]
    words = [str(word) for word in (bundle, tmp_path / "there", *images[:4])]
    subprocess.run([*emulated, *words], check=True, capture_output=True)
    there = np.fromfile(f"{tmp_path}/there.features", np.float32).reshape(here.shape)
    norms = np.linalg.norm(here, axis=1) * np.linalg.norm(there, axis=1)
    assert ((here * there).sum(1) / norms).min() > 0.9999
