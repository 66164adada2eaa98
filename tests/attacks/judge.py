"""Execute one fault and hold what happened against its row."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from regcache_engines.bundle import Bundle
from regcache_engines.errors import RegCacheError
from tests.attacks.fault import Fault, Outcome, Place
from tests.attacks.kit import Kit
from tests.attacks.watch import ROOT, run_apart, run_here, tree

READABLE = ("/usr", "/lib", "/lib64", "/bin", "/etc", "/proc", "/sys", "/dev", "/run", "/opt")
"""Beside Python, the project and what the command was given."""

CACHES = ("cache/regcache-deploy", "matplotlib", "hub")
"""What a command may keep below the home folder."""


@dataclass(frozen=True)
class Verdict:
    """Of one fault.

    Attributes:
        fault: that was executed.
        outcome: of its command.
        wrong: what was not as it must be; nothing is a fault that was handled.
    """

    fault: Fault
    outcome: Outcome
    wrong: tuple[str, ...]


def execute(fault: Fault, kit: Kit, folder: Path) -> Verdict:
    """Execute a fault in a folder that is not there yet, and judge."""
    place = Place(folder, kit)
    acted = fault.act(place)
    before = tree(place.given)
    if isinstance(acted, Outcome):
        outcome, before = acted, {}
    elif fault.traced:
        outcome = run_apart(place, acted, fault.seconds, trace=True)
    else:
        outcome = run_here(place, acted, fault.seconds)
    return Verdict(fault, outcome, tuple(_wrong(fault, place, outcome, before)))


def _wrong(
    fault: Fault, place: Place, outcome: Outcome, before: dict[str, tuple[int, ...]]
) -> Iterator[str]:
    yield from outcome.faults
    said = outcome.err.strip().splitlines()
    if outcome.code != fault.code:
        yield f"exit code {outcome.code}, not {fault.code}; said: {' | '.join(said[-2:])[:300]}"
    if outcome.seconds > fault.seconds:
        yield f"{outcome.seconds:.1f} s, and {fault.seconds:g} are allowed"
    if "Traceback" in outcome.err:
        yield "a traceback: " + said[-1][:200]
    if fault.error is not None and outcome.code == fault.code:
        lines = [line for line in said if line.startswith("regcache: error: ")]
        if len(lines) != 1 or said[-1] != lines[0]:
            yield f"not one line of error at the end: {' | '.join(said[-3:])[:300]}"
        elif len(lines[0].split()) < 6:
            yield f"a line that says nothing: {lines[0]}"
    if fault.says.lower() not in (outcome.err + outcome.out).lower():
        yield f"does not say '{fault.says}': {' | '.join(said[-2:])[:300]}"
    if place.canary.exists():
        yield "code of the input ran"
    yield from _opened_wrongly(place, outcome)
    if before and (changed := _changed(before, tree(place.given))):
        yield f"changed among the inputs: {', '.join(changed)}"
    yield from _left_behind(fault, place)


def _changed(before: dict[str, tuple[int, ...]], after: dict[str, tuple[int, ...]]) -> list[str]:
    names = sorted(before.keys() | after.keys())
    return [name for name in names if before.get(name) != after.get(name)]


def _opened_wrongly(place: Place, outcome: Outcome) -> Iterator[str]:
    readable = [*READABLE, sys.prefix, sys.base_prefix, sys.exec_prefix, str(ROOT)]
    readable += [str(Path(path)) for path in sys.path if path]
    own = str(place.root)
    for path, write in sorted(outcome.opened):
        if path.startswith("network: "):
            yield f"a connection: {path}"
        elif path.startswith("program: "):
            continue
        elif _below(path, str(place.outside)):
            yield f"opened {path}"
        elif write and not _below(path, own) and not _harmless(path):
            yield f"wrote to {path}"
        elif not write and not any(_below(path, folder) for folder in ("/", own, *readable)):
            yield f"read {path}"


def _below(path: str, folder: str) -> bool:
    """Relative paths are below the folder that the command runs in, unless they climb."""
    if folder == "/":
        return path == "/" or (not path.startswith("/") and ".." not in path.split("/"))
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _harmless(path: str) -> bool:
    return "__pycache__" in path or path.startswith(("/dev/", "/proc/self/"))


def _left_behind(fault: Fault, place: Place) -> Iterator[str]:
    left = [path for path in place.temporary.rglob("*") if not path.is_dir()]
    if left:
        yield f"left in TMPDIR: {left[0].relative_to(place.temporary)}"
    for path in place.home.rglob("*"):
        name = path.relative_to(place.home)
        if path.is_file() and not any(name.is_relative_to(folder) for folder in CACHES):
            yield f"left at home: {name}"
    if not place.out.exists():
        return
    for path in sorted(place.out.rglob("*")):
        name = path.relative_to(place.out)
        if path.name.startswith(".") or path.suffix in (".unverified", ".tmp"):
            yield f"a half-written {name}"
        if path.suffix == ".regcache" and (problem := _problem(path)):
            yield f"a bundle that is none: {problem}"
        expected = fault.error is None or len(name.parts) > 1
        if not expected and path.name not in (*fault.leaves, "parts"):
            yield f"left {name} after an error"


def _problem(path: Path) -> str:
    try:
        Bundle.open(path)
    except RegCacheError as error:
        return str(error)
    return ""
