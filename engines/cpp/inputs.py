"""Find what the C++ runtime is built from, and fetch what a Debian mirror has.

Looked for in this order: what the user names, the system, what an earlier call fetched. What is
then missing is downloaded with `apt-get` from the machine's own mirror, checked by apt's
signatures, and unpacked without being installed. ONNX Runtime's headers came with Debian 13; an
older release takes them from there, with its own mirror and the suite exchanged.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

SYSTEM = [Path("/usr/include"), Path("/usr/local/include")]
SUITE_OF_ONNXRUNTIME = "trixie"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class MissingError(Exception):
    """Something that the build needs is not here and cannot be fetched."""


def onnxruntime_headers(inputs: Path, named: str | None) -> Path:
    """Folder of `onnxruntime_cxx_api.h`."""
    header = "onnxruntime_cxx_api.h"
    if named:
        if not (Path(named) / header).is_file():
            raise MissingError(f"{named} holds no {header}")
        return Path(named).resolve()
    return _find_or_fetch(
        f"onnxruntime/{header}",
        inputs,
        "libonnxruntime-dev",
        "ONNX Runtime's headers",
        "give their folder: --onnxruntime-include DIR, or REGCACHE_ONNXRUNTIME_INCLUDE",
    ).parent


def json_headers(inputs: Path) -> Path:
    """Folder that holds `nlohmann/json.hpp`."""
    return _find_or_fetch(
        "nlohmann/json.hpp", inputs, "nlohmann-json3-dev", "nlohmann's json.hpp", "install it"
    ).parent.parent


def image_libraries(inputs: Path) -> list[str]:
    """CMake settings for libjpeg-turbo, libpng and zlib; none where the system has them."""
    settings: list[str] = []
    for name, header, library, package in (
        ("JPEG", "jpeglib.h", "libjpeg.a", "libjpeg62-turbo-dev"),
        ("ZLIB", "zlib.h", "libz.a", "zlib1g-dev"),
        ("PNG", "png.h", "libpng.a", "libpng-dev"),
    ):
        if any((folder / header).exists() for folder in SYSTEM):
            continue
        found = _find_or_fetch(header, inputs, package, header, "install it")
        archive = next(iter(sorted(inputs.glob(f"usr/lib/**/{library}"))), None)
        if archive is None:
            raise MissingError(f"{package} holds no {library}; install it")
        include = "PNG_PNG_INCLUDE_DIR" if name == "PNG" else f"{name}_INCLUDE_DIR"
        settings += [f"-D{include}={found.parent}", f"-D{name}_LIBRARY={archive}"]
    return settings


def onnxruntime_library() -> Path | None:
    """The shared library inside the installed Python package, or None."""
    package = importlib.util.find_spec("onnxruntime")
    if package is None or not package.submodule_search_locations:
        return None
    capi = Path(package.submodule_search_locations[0]) / "capi"
    return next(iter(sorted(capi.glob("libonnxruntime.so.*"))), None)


def fetch_clang(inputs: Path) -> Path | None:
    """A clang++ with libFuzzer: the system's, or Debian's, unpacked. None if there is neither."""
    root = inputs / "usr/lib"
    unpacked = next(iter(sorted(root.glob("llvm-*/bin/clang++"))), None)
    for found in (shutil.which("clang++"), unpacked):
        if found and _has_fuzzer(Path(found)):
            return Path(found)
    version = _clang_version()
    if version is None:
        return None
    packages = [
        f"{name.format(version)}"
        for name in ("clang-{}", "libclang-rt-{}-dev", "libclang-common-{}-dev")
    ] + [
        name
        for name in (f"libclang-cpp{version}", f"libllvm{version}", f"llvm-{version}-linker-tools")
        if not _installed(name)
    ]
    try:
        _download(packages, inputs, suite=None)
    except MissingError:
        return None
    found = root / f"llvm-{version}/bin/clang++"
    return found if _has_fuzzer(found) else None


def clang_environment(inputs: Path) -> dict[str, str]:
    """Environment in which an unpacked clang finds its own libraries."""
    folders = [str(path.parent) for path in inputs.glob("usr/lib/*/libclang-cpp.so*")]
    folders += [str(path.parent) for path in inputs.glob("usr/lib/*/libLLVM*.so*")]
    old = os.environ.get("LD_LIBRARY_PATH", "")
    joined = ":".join([*sorted(set(folders)), *([old] if old else [])])
    return {**os.environ, "LD_LIBRARY_PATH": joined} if joined else dict(os.environ)


def _has_fuzzer(clang: Path) -> bool:
    inputs = clang.parents[4] if "llvm-" in str(clang) else Path("/nowhere")
    done = subprocess.run(
        [clang, "-x", "c++", "-", "-fsanitize=fuzzer,address", "-o", os.devnull],
        input="#include <cstddef>\n#include <cstdint>\n"
        'extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t*, std::size_t) { return 0; }\n',
        text=True,
        capture_output=True,
        env=clang_environment(inputs),
        check=False,
    )
    return done.returncode == 0


def _clang_version() -> str | None:
    if not shutil.which("apt-cache"):
        return None
    shown = _run(["apt-cache", "depends", "clang"]) or ""
    match = re.search(r"Depends: clang-(\d+)", shown)
    return match.group(1) if match else None


def _installed(package: str) -> bool:
    return "install ok installed" in (_run(["dpkg-query", "-W", "-f=${Status}", package]) or "")


def _find_or_fetch(header: str, inputs: Path, package: str, what: str, advice: str) -> Path:
    for folder in (*SYSTEM, inputs / "usr/include"):
        if (folder / header).is_file():
            return folder / header
    suite = SUITE_OF_ONNXRUNTIME if package == "libonnxruntime-dev" else None
    try:
        _download([package], inputs, suite)
    except MissingError as error:
        raise MissingError(
            f"{what} are missing (Debian package {package}) and cannot be fetched: {error}; "
            f"{advice}"
        ) from error
    found = inputs / "usr/include" / header
    if not found.is_file():
        raise MissingError(f"{package} holds no {header}; {advice}")
    return found


def _download(packages: list[str], inputs: Path, suite: str | None) -> None:
    """Download Debian packages and unpack them under `inputs`."""
    for program in ("apt-get", "dpkg"):
        if not shutil.which(program):
            raise MissingError(f"{program} is not installed")
    inputs.mkdir(parents=True, exist_ok=True)
    archives = inputs / "archives"
    archives.mkdir(exist_ok=True)
    options = _other_suite(inputs, suite) if suite else []
    attempts = [options] if suite else [[], _own_lists(inputs)]
    for attempt in attempts:
        if attempt:
            _run(["apt-get", *attempt, "-qq", "update"])
        if _run(["apt-get", *attempt, "-qq", "download", *packages], archives) is not None:
            break
    else:
        raise MissingError(f"apt-get could not download {' '.join(packages)}")
    for archive in archives.glob("*.deb"):
        if _run(["dpkg", "-x", str(archive), str(inputs)]) is None:
            raise MissingError(f"dpkg could not unpack {archive.name}")
        archive.unlink()


def _private(inputs: Path, name: str) -> list[str]:
    """Options that keep apt's state in our folder: the machine's own lists stay as they are."""
    state = inputs / f"apt-{name}"
    (state / "lists/partial").mkdir(parents=True, exist_ok=True)
    (state / "archives/partial").mkdir(parents=True, exist_ok=True)
    return [
        "-o", f"Dir::State={state}", "-o", f"Dir::Cache={state}",
        "-o", "Dir::State::status=/var/lib/dpkg/status", "-o", "APT::Sandbox::User=root",
    ]  # fmt: skip


def _own_lists(inputs: Path) -> list[str]:
    """The machine's own sources, for a machine whose lists were emptied."""
    return _private(inputs, "own")


def _other_suite(inputs: Path, suite: str) -> list[str]:
    mirror = _mirror()
    source = inputs / f"{suite}.list"
    signed = f"[signed-by={KEYRING}] " if KEYRING.is_file() else ""
    source.write_text(f"deb {signed}{mirror} {suite} main\n", encoding="utf-8")
    return [
        *_private(inputs, suite),
        "-o", f"Dir::Etc::sourcelist={source}", "-o", "Dir::Etc::sourceparts=/dev/null",
    ]  # fmt: skip


def _mirror() -> str:
    """The first Debian mirror of the machine's apt sources."""
    listed = _run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(ORIGIN)"]) or ""
    for line in listed.splitlines():
        uri, _, origin = line.partition(" ")
        if origin.strip() == "Debian" and "security" not in uri:
            return uri
    texts = [
        path.read_text(encoding="utf-8", errors="replace")
        for pattern in ("sources.list", "sources.list.d/*.sources", "sources.list.d/*.list")
        for path in sorted(Path("/etc/apt").glob(pattern))
    ]
    found = re.findall(r"^(?:URIs:|deb(?: \[[^]]*\])?)\s+(\S+)", "\n".join(texts), re.MULTILINE)
    for uri in found:
        if uri.rstrip("/").endswith("debian"):
            return str(uri)
    raise MissingError("no Debian mirror among this machine's apt sources")


def _run(command: list[str], cwd: Path | None = None) -> str | None:
    """Standard output, or None if the command failed."""
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, check=False, timeout=300
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
