"""libregcache and the runtime for Python are one: pixels to the bit, classes, warnings."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import regcache_engines
from tests.cpp.programs import ROOT, dump, float_bundle, run
from tests.cpp.test_results import CONFIGS

GOLDEN = sorted(
    path
    for path in (ROOT / "tests/engines/golden").iterdir()
    if path.suffix in (".png", ".jpg")  # the formats that libregcache decodes
)


@pytest.mark.parametrize("name", CONFIGS)
def test_golden_images_give_the_same_pixels_bit_for_bit(
    name: str, release: Path, tmp_path: Path
) -> None:
    made = float_bundle(tmp_path / f"{name}.regcache", CONFIGS[name])
    statuses, pixels, features = dump(release, made, GOLDEN, tmp_path / "out")
    with regcache_engines.open(made, threads=1) as clip:
        for path, status in zip(GOLDEN, statuses, strict=True):
            if status != "ok":
                with pytest.raises(regcache_engines.DataError):
                    clip.embed_images(path)
        good = [path for path, status in zip(GOLDEN, statuses, strict=True) if status == "ok"]
        assert len(good) >= len(GOLDEN) - 2
        ours = np.stack([clip.preprocess.read(path) for path in good])
        assert np.array_equal(ours, pixels)
        # and one image at a time, as the program runs them, the very features
        alone = np.concatenate([clip.embed_images(path, normalize=False) for path in good])
    assert np.allclose(alone, features, rtol=1e-5, atol=1e-6)


def test_the_example_names_the_same_class(release: Path, bundle: Path, tmp_path: Path) -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    program = tmp_path / "classify"
    subprocess.run(
        [compiler, "-std=c++17", "-Wall", "-Werror", "-I", ROOT / "engines/cpp/include",
         ROOT / "examples/classify.cpp", "-o", program, "-L", release, "-lregcache",
         f"-Wl,-rpath,{release}"],
        check=True,
    )  # fmt: skip
    library = str(release / "onnxruntime/libonnxruntime.so.1")
    done = run(program, bundle, *GOLDEN[:3], runtime=library)
    assert done.returncode == 0, done.stderr
    with regcache_engines.open(bundle) as clip:
        best = [found[0] for found in clip.classify(GOLDEN[:3])]
    lines = done.stdout.splitlines()
    assert [line.rsplit(" % ", 1)[1] for line in lines] == [found.label for found in best]
    scores = [float(line.rsplit(": ", 1)[1].split(" ")[0]) for line in lines]
    assert scores == pytest.approx([100 * found.score for found in best], abs=0.02)
    assert run(program, bundle, "nowhere.png", runtime=library).returncode == 4
