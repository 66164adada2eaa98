"""Build the C++ runtime: `make cpp`, or `python engines/cpp/build.py`.

    build.py                 build/cpp: libregcache.so, regcache_classify, the test programs
    build.py --sanitize      build/cpp-sanitize: a static one with AddressSanitizer and UBSan
    build.py --fuzzer        build/cpp-fuzz: the libFuzzer target

Exit codes: 0 built, 1 the build failed, 77 something is missing (said on stderr).
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from inputs import (
    MissingError,
    clang_environment,
    fetch_clang,
    image_libraries,
    json_headers,
    onnxruntime_headers,
    onnxruntime_library,
)

SOURCE = Path(__file__).resolve().parent
MISSING = 77


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the C++ runtime.")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--sanitize", action="store_true", help="with ASan and UBSan")
    kinds.add_argument("--fuzzer", action="store_true", help="the libFuzzer target; needs clang")
    parser.add_argument(
        "--build-dir", type=Path, default=SOURCE.parent.parent / "build", metavar="DIR"
    )
    parser.add_argument(
        "--onnxruntime-include",
        metavar="DIR",
        default=os.environ.get("REGCACHE_ONNXRUNTIME_INCLUDE"),
        help="folder of onnxruntime_cxx_api.h (default: the system's, or fetched)",
    )
    arguments = parser.parse_args()
    root = arguments.build_dir.resolve()
    root.mkdir(parents=True, exist_ok=True)
    try:
        with open(root / "cpp.lock", "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # parallel tests build once
            return _build(root, arguments)
    except MissingError as error:
        print(f"cannot build the C++ runtime: {error}", file=sys.stderr)
        return MISSING


def _build(root: Path, arguments: argparse.Namespace) -> int:
    for program, advice in (("cmake", "install cmake"), ("c++", "install g++ or clang")):
        if not shutil.which(program):
            raise MissingError(f"there is no {program}; {advice}")
    inputs = root / "cpp-inputs"
    settings = [f"-DREGCACHE_JSON_INCLUDE={json_headers(inputs)}", *image_libraries(inputs)]
    environment = dict(os.environ)
    if arguments.fuzzer:
        build = root / "cpp-fuzz"
        clang = fetch_clang(inputs)
        if clang is None:
            raise MissingError("there is no clang++ with libFuzzer; install clang")
        environment = clang_environment(inputs)
        settings += [f"-DCMAKE_CXX_COMPILER={clang}", "-DREGCACHE_BUILD_FUZZER=ON"]
        settings += ["-DREGCACHE_SANITIZE=ON"]
    else:
        build = root / ("cpp-sanitize" if arguments.sanitize else "cpp")
        headers = onnxruntime_headers(inputs, arguments.onnxruntime_include)
        settings += [
            f"-DREGCACHE_ONNXRUNTIME_INCLUDE={headers}",
            f"-DREGCACHE_ONNXRUNTIME_RPATH={_runtime(build)}",
            f"-DREGCACHE_SANITIZE={'ON' if arguments.sanitize else 'OFF'}",
            # the tests see both kinds of library
            f"-DBUILD_SHARED_LIBS={'OFF' if arguments.sanitize else 'ON'}",
            "-DREGCACHE_BUILD_TESTS=ON",
        ]
    configure = ["cmake", "-S", str(SOURCE), "-B", str(build), *settings]
    compile_ = ["cmake", "--build", str(build), "--parallel", str(os.cpu_count() or 1)]
    for command in (configure, compile_):
        if not _run(command, environment):
            return 1
    print(build)
    return 0


def _run(command: list[str], environment: dict[str, str]) -> bool:
    """Run a step, its lines on stderr as they come: a build is silent for long otherwise."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as step:
        assert step.stdout is not None
        for line in step.stdout:
            sys.stderr.write(line)
    return step.returncode == 0


def _runtime(build: Path) -> Path:
    """A folder where programs of the build find ONNX Runtime under the name they look for."""
    folder = build / "onnxruntime"
    folder.mkdir(parents=True, exist_ok=True)
    library = onnxruntime_library()
    link = folder / "libonnxruntime.so.1"
    if library is not None:
        # renamed into place: a test of another process may be looking at it
        made = folder / f".{os.getpid()}"
        made.unlink(missing_ok=True)
        made.symlink_to(library)
        made.replace(link)
    else:
        link.unlink(missing_ok=True)
        print(
            "no Python package onnxruntime here: set REGCACHE_ONNXRUNTIME to libonnxruntime.so "
            "before running the programs",
            file=sys.stderr,
        )
    return folder


if __name__ == "__main__":
    sys.exit(main())
