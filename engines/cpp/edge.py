"""Build the C++ runtime for ARM64 on another machine, and what runs it there under qemu.

    python engines/cpp/edge.py       build/edge: cpp/, a folder of Debian's ARM64 libraries and
                                     Python, and the wheels of a deployment

Needs Debian's g++-aarch64-linux-gnu and qemu-user; the rest is downloaded into the build folder by
apt-get and pip, and nothing of the system is changed. `make test-edge` runs the tests on it.
Exit codes: 0 built, 1 a step failed, 77 something is missing (said on stderr).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from inputs import MissingError, json_headers, onnxruntime_headers

SOURCE = Path(__file__).resolve().parent
ROOT = SOURCE.parents[1]
MISSING = 77
TRIPLE = "aarch64-linux-gnu"
PYTHON = "3.11"  # of Debian 12
LIBRARIES = (
    *("libc6", "libstdc++6", "libgcc-s1", "libjpeg62-turbo-dev", "libjpeg62-turbo"),
    *("libpng-dev", "libpng16-16", "zlib1g-dev", "zlib1g"),
    *(f"python{PYTHON}-minimal", f"libpython{PYTHON}-minimal", f"libpython{PYTHON}-stdlib"),
    *("libexpat1", "libffi8", "libssl3", "libsqlite3-0", "libbz2-1.0", "liblzma5", "libuuid1"),
)
WHEELS = ("numpy", "onnxruntime", "onnx", "safetensors", "pillow", "onnx-ir", "ml-dtypes")
PURE = ("protobuf", "flatbuffers", "typing_extensions", "sympy", "mpmath", "packaging")
CORTEX_A72 = """processor\t: 0
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux2014", "manylinux_2_17")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--build-dir", type=Path, default=ROOT / "build", metavar="DIR")
    root = parser.parse_args().build_dir.resolve()
    edge = root / "edge"
    edge.mkdir(parents=True, exist_ok=True)
    try:
        for program, advice in (
            (f"{TRIPLE}-g++", "apt-get install g++-aarch64-linux-gnu"),
            ("qemu-aarch64", "apt-get install qemu-user"),
            ("cmake", "apt-get install cmake"),
        ):
            if not shutil.which(program):
                raise MissingError(f"there is no {program}: {advice}")
        system = download_system(edge)
        describe_cpu(system)
        runtime = download_wheels(edge)
        build(root, edge, system, runtime)
    except MissingError as error:
        print(f"cannot build for ARM64: {error}", file=sys.stderr)
        return MISSING
    except subprocess.CalledProcessError as error:
        print(f"this step failed: {' '.join(map(str, error.cmd))}", file=sys.stderr)
        return 1
    print(edge)
    return 0


def download_system(edge: Path) -> Path:
    """Debian's libraries and Python for ARM64, unpacked; apt's state is a folder of our own."""
    system = edge / "root"
    if (system / f"usr/bin/python{PYTHON}").exists():
        return system
    state, archives = edge / "apt", edge / "archives"
    for folder in (state / "lists/partial", state / "archives/partial", archives):
        folder.mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    options = [
        *(
            "-o",
            f"Dir::State={state}",
            "-o",
            f"Dir::Cache={state}",
            "-o",
            "APT::Architecture=arm64",
        ),
        *("-o", f"Dir::State::status={state}/status", "-o", "APT::Sandbox::User=root"),
        *("-o", "APT::Architectures::=arm64", "-qq"),
    ]
    step(["apt-get", *options, "update"])
    step(["apt-get", *options, "download", *LIBRARIES], archives)
    for archive in archives.glob("*.deb"):
        step(["dpkg", "-x", str(archive), str(system)])
    return system


def describe_cpu(system: Path) -> None:
    """Qemu shows programs the host's /proc and /sys, where these are not in its folder.

    ONNX Runtime's cpuinfo library crashes on those of an x86 host.
    """
    cpu = system / "sys/devices/system/cpu"
    cpu.mkdir(parents=True, exist_ok=True)
    for name in ("possible", "present"):
        (cpu / name).write_text("0\n", encoding="ascii")
    (system / "proc").mkdir(exist_ok=True)
    (system / "proc/cpuinfo").write_text(CORTEX_A72, encoding="ascii")


def download_wheels(edge: Path) -> Path:
    """A deployment's packages for ARM64; returns the folder of ONNX Runtime's library."""
    site = edge / "site"
    if not (site / "onnxruntime").exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade"]
        command += ["--only-binary=:all:", f"--python-version={PYTHON}", f"--target={site}"]
        command += [f"--platform={name}_aarch64" for name in PLATFORMS]
        step([*command, *map(pinned, WHEELS), *PURE])
    folder = edge / "runtime"
    folder.mkdir(exist_ok=True)
    library = next((site / "onnxruntime/capi").glob("libonnxruntime.so.*"))
    link = folder / "libonnxruntime.so.1"
    link.unlink(missing_ok=True)
    link.symlink_to(library)
    return folder


def pinned(name: str) -> str:
    """The version that is installed here, so that both sides run the same code."""
    try:
        return f"{name}=={version(name)}"
    except PackageNotFoundError:
        return name


def build(root: Path, edge: Path, system: Path, runtime: Path) -> None:
    inputs = root / "cpp-inputs"
    headers = onnxruntime_headers(inputs, os.environ.get("REGCACHE_ONNXRUNTIME_INCLUDE"))
    toolchain = edge / "toolchain.cmake"
    toolchain.write_text(
        f"""set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER {TRIPLE}-gcc)
set(CMAKE_CXX_COMPILER {TRIPLE}-g++)
set(CMAKE_CXX_FLAGS_INIT "-isystem {system}/usr/include/{TRIPLE}")
set(CMAKE_EXE_LINKER_FLAGS_INIT "-Wl,-rpath-link,{system}/lib/{TRIPLE}")
set(CMAKE_LIBRARY_ARCHITECTURE {TRIPLE})
set(CMAKE_FIND_ROOT_PATH {system})
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE BOTH)
""",
        encoding="utf-8",
    )
    place = edge / "cpp"
    settings = [
        f"-DCMAKE_TOOLCHAIN_FILE={toolchain}",
        f"-DREGCACHE_JSON_INCLUDE={json_headers(inputs)}",
        f"-DREGCACHE_ONNXRUNTIME_INCLUDE={headers}",
        f"-DREGCACHE_ORT_HEADERS={headers}",
        f"-DREGCACHE_ONNXRUNTIME_RPATH={runtime}",
        *("-DBUILD_SHARED_LIBS=ON", "-DREGCACHE_BUILD_TESTS=ON"),
    ]
    step(["cmake", "-S", str(SOURCE), "-B", str(place), *settings])
    step(["cmake", "--build", str(place), "--parallel", str(os.cpu_count() or 1)])


def step(command: list[str], folder: Path | None = None) -> None:
    subprocess.run(command, check=True, cwd=folder, stdout=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
