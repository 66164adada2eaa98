"""Build and run the programs of engines/cpp, and the same work in Python to compare with."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from regcache_deploy.data.images import Images
from regcache_deploy.errors import DataError
from regcache_engines import Bundle, load_engine
from regcache_engines.preprocess import Preprocess
from regcache_export.bundle import write_bundle
from tests.tiny_plans import PREPROCESS, tiny_plan

ROOT = Path(__file__).parent.parent.parent
BUILD = ROOT / "engines/cpp/build.py"
MISSING = 77


def build(*options: str) -> Path:
    """The build folder of a kind; skips where something is missing, fails where it is broken.

    build.py holds a lock, and does nothing where all is built: workers that run in parallel share
    one build.
    """
    done = subprocess.run(
        [sys.executable, BUILD, *options], capture_output=True, text=True, check=False
    )
    if done.returncode == MISSING:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[-1])


def float_bundle(folder: Path, config: dict[str, Any]) -> Path:
    """An encoder with random float weights for a preprocessing."""
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    plan = tiny_plan(quantized=False, image_size=(height, width))
    return write_bundle(replace(plan, preprocess=PREPROCESS | config), folder)


def run(
    program: Path, *words: object, runtime: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program of the build; a sanitizer's report ends it with another code.

    Args:
        program: one of a build folder, or one that was linked to it.
        words: its arguments.
        runtime: the libonnxruntime.so to load; None leaves that to the program.
    """
    environment = os.environ | {
        "ASAN_OPTIONS": "detect_leaks=1:allocator_may_return_null=1",
        "LSAN_OPTIONS": f"suppressions={ROOT}/engines/cpp/tests/lsan.supp:print_suppressions=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    if program.parent.name == "cpp-sanitize":
        # the sanitizer's own dlopen does not know where our library looks
        library = program.parent / "onnxruntime/libonnxruntime.so.1"
        environment["REGCACHE_ONNXRUNTIME"] = str(library)
    if runtime is not None:
        environment["REGCACHE_ONNXRUNTIME"] = runtime
    done = subprocess.run(
        [program, *map(str, words)], capture_output=True, env=environment, check=False,
        encoding="utf-8", errors="backslashreplace",
    )  # fmt: skip
    assert "Sanitizer" not in done.stderr, done.stderr
    assert "runtime error" not in done.stderr, done.stderr
    assert done.returncode >= 0, f"ended by signal {-done.returncode}: {done.stderr}"
    return done


def dump(
    folder: Path, bundle: Path, images: list[Path], out: Path
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Statuses, pixels `[n, H, W, 3]` and features `[n, E]` of the C++ runtime."""
    done = run(folder / "regcache_dump", bundle, out, *images)
    statuses = [line for line in done.stdout.splitlines() if not line.startswith("probe ")]
    shape = Bundle.open(bundle).manifest["graph"]["input"]["shape"]
    height, width = shape[2:] if shape[1] == 3 else shape[1:3]
    pixels = np.fromfile(f"{out}.pixels", np.uint8).reshape(-1, height, width, 3)
    features = np.fromfile(f"{out}.features", np.float32)
    return statuses, pixels, features.reshape(len(pixels), -1) if len(pixels) else features


def python_results(bundle: Path, images: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """The same from open_clip with Pillow, and from our Python engine."""
    opened = Bundle.open(bundle)
    preprocess = Preprocess(opened.preprocess)
    pixels = torch.from_numpy(np.stack([preprocess.read(path) for path in images]))
    data = Images(pixels, preprocess.mean, preprocess.std, "test")
    with load_engine(opened, threads=1) as engine:
        layout = getattr(engine, "pixels", None)
        if layout is None:
            feed = [batch.numpy() for batch in data.batches(1)]
        else:
            raw = pixels if layout == "nhwc" else pixels.permute(0, 3, 1, 2)
            feed = [np.ascontiguousarray(image[None].numpy()) for image in raw]
        features = np.concatenate([engine.infer(batch) for batch in feed])
    return pixels.numpy(), features


def python_reads(bundle: Path, path: Path) -> bool:
    try:
        Preprocess(Bundle.open(bundle).preprocess).read(path)
    except DataError:
        return False
    return True


def assert_equal_results(folder: Path, bundle: Path, images: list[Path], out: Path) -> None:
    statuses, pixels, features = dump(folder, bundle, images, out)
    # a picture that becomes less than one pixel wide is refused by both
    good = [path for path in images if python_reads(bundle, path)]
    assert [status == "ok" for status in statuses] == [path in good for path in images]
    assert len(good) >= len(images) - 2
    images = good
    wanted_pixels, wanted_features = python_results(bundle, images)
    worst = np.abs(pixels.astype(int) - wanted_pixels).max(axis=(1, 2, 3))
    different = {path.name: int(d) for path, d in zip(images, worst, strict=True) if d > 1}
    assert not different
    norms = np.linalg.norm(features, axis=1) * np.linalg.norm(wanted_features, axis=1)
    cosines = (features * wanted_features).sum(1) / norms
    print(f"{len(good)} images: pixels differ by {worst.max()}, lowest cosine {cosines.min():.7f}")
    assert (cosines >= 0.99999).all()
