"""Say what is installed, what will work with it, and what to install for the rest."""

from __future__ import annotations

import argparse
import platform
import re
import sys
import warnings
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from regcache_engines.cpu_flags import int8_flags, may_saturate
from regcache_engines.errors import EngineError
from regcache_engines.onnxruntime_session import import_onnxruntime, installed_distributions

from .. import __version__
from ..work.json_file import json_text
from .common import add_common_arguments

HELP = "versions, installed extras, and what will work on this machine"

EXAMPLES = """\
  regcache doctor
  regcache doctor --json"""

DISTRIBUTION = "regcache-deploy"

USES = {
    "search and export (regcache export)": ("search", "cpu"),
    "a bundle on the CPU: run, verify, time, evaluate": ("cpu",),
    "texts (regcache_engines, embed_text)": ("text",),
    "a bundle on an NVIDIA GPU, ONNX Runtime": ("gpu",),
    "TensorRT engines": ("trt",),
    "TensorRT engines, 10.x": ("trt10",),
    "TensorRT-RTX engines": ("rtx",),
    "comparison with OpenVINO": ("openvino",),
}
"""What a user wants to do, and the extras that it takes."""

_STANDS_IN = {"onnxruntime": "onnxruntime-gpu"}
"""The second runs on the CPU, too; both own the same files, so only one may be installed."""


@dataclass(frozen=True)
class Requirement:
    """A distribution that an extra asks for.

    Attributes:
        name: of the distribution.
        versions: what it may be, for example `>=11,<12`.
        found: installed version, None if it is not installed.
    """

    name: str
    versions: str
    found: str | None

    @property
    def satisfied(self) -> bool:
        if self.found is None:
            return False
        found = _numbers(self.found)
        floors, ceilings = (
            [_numbers(v) for v in re.findall(rf"{sign}\s*([\d.]+)", self.versions)]
            for sign in (">=", "<")
        )
        return all(found >= v for v in floors) and all(found < v for v in ceilings)

    def __str__(self) -> str:
        return self.name + self.versions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `regcache doctor`."""
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the findings on stdout. Returns 0: a missing extra is no fault."""
    findings = diagnose()
    if args.json:
        print(json_text(findings))
    else:
        print("\n".join(_lines(findings)))
    return 0


def diagnose() -> dict[str, Any]:
    """What is installed and what follows.

    By the metadata of what is installed; ONNX Runtime is loaded, because its package may be there
    and not load.
    """
    extras = _extras()
    driver, broken = _nvidia_driver(), _broken_onnxruntime()
    missing = {
        extra: [str(r) for r in requirements if not r.satisfied]
        for extra, requirements in extras.items()
    }
    return {
        "regcache_deploy": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "cpu_int8": int8_flags(),
        "cpu_saturates": may_saturate(),
        "nvidia_driver": driver,
        "packages": {
            r.name: found  # not the one that stands in for it
            for rs in extras.values()
            for r in rs
            if (found := _version(r.name)) is not None
        },
        "missing": missing,
        "works": {
            use: bool(extras)
            and not any(missing.get(extra, [extra]) for extra in needed)
            and not (broken and {"cpu", "gpu"} & {*needed})
            and not (driver is None and "gpu" in needed)
            for use, needed in USES.items()
        },
        "warnings": sorted([*_warnings(extras), *([broken] if broken else [])]),
    }


def _broken_onnxruntime() -> str | None:
    """Why an installed ONNX Runtime does not load, or None."""
    if not installed_distributions():
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of two distributions: `_warnings` says it
            import_onnxruntime()
    except EngineError as error:
        return str(error)
    return None


def _extras() -> dict[str, list[Requirement]]:
    """Extra -> its requirements, from the installed metadata of this distribution."""
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return {}
    direct: dict[str, list[tuple[str, str, str]]] = {}
    for line in lines:
        text, _, marker = line.partition(";")
        extra = re.search(r"extra\s*==\s*['\"]([\w.-]+)['\"]", marker)
        found = re.match(r"\s*([\w.-]+)\s*(?:\[([\w.,-]+)\])?\s*(.*)", text)
        if extra and found and "python_version" not in marker:
            parts = (found[1], found[2] or "", found[3].strip())
            direct.setdefault(extra[1], []).append(parts)
    return {extra: _resolve(extra, direct) for extra in direct}


def _resolve(extra: str, direct: dict[str, list[tuple[str, str, str]]]) -> list[Requirement]:
    out: list[Requirement] = []
    for name, inner, versions in direct.get(extra, []):
        if name == DISTRIBUTION:  # an extra that builds on another one
            out += [r for part in inner.split(",") for r in _resolve(part, direct)]
        else:
            found = _version(name) or _version(_STANDS_IN.get(name, name))
            out.append(Requirement(name, versions, found))
    return out


def _warnings(extras: dict[str, list[Requirement]]) -> list[str]:
    lines = []
    if may_saturate():
        lines.append(
            "this CPU has no VNNI instructions: u8s8 products saturate. Our engines ask ONNX "
            "Runtime for exact ones (session.x64quantprecision), which are slower; another program "
            "must do so itself, or export with --reduce-range"
        )
    for one, other in _STANDS_IN.items():
        if _version(one) and _version(other):
            lines.append(
                f"{one} and {other} are both installed; they share their files and the last one "
                f"wins: pip uninstall -y {one} {other}, then install the one that you want"
            )
    asked: dict[str, set[Requirement]] = {}
    for r in (r for rs in extras.values() for r in rs):
        asked.setdefault(r.name, set()).add(r)
    for name, rs in asked.items():  # extras such as trt and trt10 ask for different releases of one
        found = next(iter(rs)).found
        if found is not None and not any(r.satisfied for r in rs):
            needed = " or ".join(sorted(map(str, rs)))
            lines.append(f"{name} {found} is installed; needed: {needed}")
    if not extras:
        lines.append(f"{DISTRIBUTION} is not installed; run: pip install '.[search,cpu]'")
    return sorted(lines)


def _lines(findings: dict[str, Any]) -> list[str]:
    lines = [
        f"regcache-deploy {findings['regcache_deploy']}, Python {findings['python']}",
        f"{findings['platform']}",
        f"CPU instructions for INT8: {', '.join(findings['cpu_int8']) or 'none known'}",
        f"NVIDIA driver: {findings['nvidia_driver'] or 'none'}",
        "",
        "Will work:",
    ]
    for use, works in findings["works"].items():
        lines.append(f"  {'yes' if works else 'no ':<4}{use}{_how(use, works, findings)}")
    lines += ["", "Installed:"]
    lines += [f"  {name} {version}" for name, version in sorted(findings["packages"].items())]
    return lines + [f"\nwarning: {text}" for text in findings["warnings"]]


def _how(use: str, works: bool, findings: dict[str, Any]) -> str:
    """What is left to do for a use, behind its line."""
    extras = USES[use]
    if not works and any(findings["missing"].get(extra, [extra]) for extra in extras):
        how = f"   pip install '{DISTRIBUTION}[{','.join(extras)}]'"
        if "gpu" in extras and "onnxruntime" in findings["packages"]:
            how += " after pip uninstall onnxruntime"
        return how
    if findings["nvidia_driver"] is None and {"gpu", "trt", "trt10", "rtx"} & {*extras}:
        return f"   {'to build; to run them, ' if works else ''}install an NVIDIA driver"
    return "" if works else "   see the warning below"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """`2.13.0+cpu` -> (2, 13, 0); a suffix such as rc1 does not count."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def _nvidia_driver() -> str | None:
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return None
    match = re.search(r"Kernel Module\D*([\d.]+)", text)
    return match[1] if match else "unknown version"
