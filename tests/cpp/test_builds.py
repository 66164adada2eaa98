"""The API from inside, the fuzzer, and the installed package with a program that links it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from regcache_engines import Bundle
from tests.cpp.programs import ROOT, build, run


def test_the_api_in_both_builds(
    release: Path, sanitized: Path, bundle: Path, images: list[Path]
) -> None:
    picture = next(path for path in images if path.name == "131x97-RGB.png")
    for folder in (release, sanitized):
        done = run(folder / "test_api", bundle, picture)
        assert done.returncode == 0, done.stdout


def test_the_fuzzer_finds_nothing_in_a_short_run(tmp_path: Path) -> None:
    folder = build("--fuzzer")
    corpus = tmp_path / "corpus"
    subprocess.run([sys.executable, ROOT / "engines/cpp/fuzz/seeds.py", corpus], check=True)
    done = subprocess.run(
        [folder / "regcache_fuzz", corpus, "-runs=20000", "-max_total_time=10", "-seed=1",
         "-max_len=4096", "-timeout=10", f"-artifact_prefix={tmp_path}/"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    log = [line for line in done.stderr.splitlines() if not line.startswith(("#", "\tNEW_"))]
    assert done.returncode == 0, "\n".join(log)[:8000]
    assert "Done" in done.stderr


def image_libraries(folder: Path) -> list[str]:
    """Where the build found them: a static library leaves them to the program that links it."""
    cache = (folder / "CMakeCache.txt").read_text(encoding="utf-8")
    names = r"^((?:JPEG|PNG|PNG_PNG|ZLIB)_(?:INCLUDE_DIR|LIBRARY|LIBRARY_RELEASE)):\w+=(/.+)$"
    return [f"-D{name}={value}" for name, value in re.findall(names, cache, re.MULTILINE)]


@pytest.mark.parametrize("kind", ["shared", "static"])
def test_find_package_builds_a_consumer(
    kind: str,
    release: Path,
    sanitized: Path,
    bundle: Path,
    images: list[Path],
    tmp_path: Path,
) -> None:
    """A C program that knows the installed package only; the static one is the sanitized one."""
    folder, flags, strip = release, [], ["--strip"]
    if kind == "static":
        sanitize = "-fsanitize=address,undefined"
        flags = [f"-DCMAKE_C_FLAGS={sanitize}", f"-DCMAKE_EXE_LINKER_FLAGS={sanitize}"]
        folder, flags, strip = sanitized, [*flags, *image_libraries(sanitized)], []
    prefix = tmp_path / "prefix"
    for command in (
        ["cmake", "--install", folder, "--prefix", prefix, *strip],
        ["cmake", "-S", ROOT / "engines/cpp/tests/consumer", "-B", tmp_path / "consumer",
         f"-DCMAKE_PREFIX_PATH={prefix}", *flags],
        ["cmake", "--build", tmp_path / "consumer"],
    ):  # fmt: skip
        words = [str(word) for word in command]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    if kind == "shared":
        library = next(path for path in prefix.glob("lib*/**/libregcache.so.*") if path.is_file())
        assert library.stat().st_size < 2 * 2**20
    else:
        assert list(prefix.glob("lib*/**/libregcache.a"))
        assert not list(prefix.glob("lib*/**/libregcache.so*"))
    consumer = tmp_path / "consumer/consumer"
    runtime = str(folder / "onnxruntime/libonnxruntime.so.1")
    done = run(consumer, bundle, images[0], runtime=runtime)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split()[0] in Bundle.open(bundle).labels
    # without ONNX Runtime: an error, no crash
    done = run(consumer, bundle, images[0], runtime="/no/such/library.so")
    assert done.returncode == 7
    assert "REGCACHE_ONNXRUNTIME" in done.stderr
