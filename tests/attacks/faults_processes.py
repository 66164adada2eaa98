"""Processes that are killed, disks that are full, folders that cannot be written."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from regcache_deploy.errors import ConfigError, DataError, EngineError, RegCacheError
from regcache_engines.bundle import Bundle
from tests.attacks.children import Child, Limits, run_child
from tests.attacks.fault import Act, Fault, Outcome, Place
from tests.attacks.watch import environment, run_apart

KILLS = int(os.environ.get("FAULT_KILLS", "12"))
"""Random instants at which each stage is killed."""

MIB = 1 << 20
Words = Callable[[Place], list[str]]


def calibrate(place: Place) -> list[str]:
    words = ["calibrate", str(place.run()), "--data", str(place.images()), "--images", "16"]
    return [*words, "--output", str(place.out), "--threads", "1"]


def build(place: Place) -> list[str]:
    words = ["build", str(place.bundle()), "--engine", "onnxruntime", "--output", str(place.out)]
    words += ["--max-drop", "90", "--min-speedup", "0.01", "--threads", "1", "--seconds", "1"]
    return [*words, "--data", str(place.images())]


def report(place: Place) -> list[str]:
    shutil.copytree(finished(place), place.out)
    return ["report", str(place.out), "--no-layers"]


def embed(place: Place) -> list[str]:
    """Eight parts, with a process that decodes."""
    words = ["embed", str(place.bundle()), "--data", str(place.images()), "--metadata", "jsonl"]
    words += ["--output", str(place.out), "--part-images", "8", "--batch-size", "4"]
    return [*words, "--decoders", "1", "--threads", "1"]


def finished(place: Place) -> Path:
    """The folder of a finished export."""
    other = Place(place.root / "finished", place.kit)
    done = run_child(other, other.export())
    assert done.code == 0, done.err
    return other.out


def killed(words_of: Words, number: signal.Signals = signal.SIGKILL) -> Act:
    """Kill a stage at random instants; afterwards it must run, and leave nothing of the killed."""

    def act(place: Place) -> Outcome:
        words, draw, seen = words_of(place), random.Random(0), list[str]()
        before = sorted(os.listdir(place.out)) if place.out.exists() else []
        begin = time.monotonic()
        whole = run_child(place, words)
        if whole.code != 0:
            return whole
        length, wanted = time.monotonic() - begin, digests(place.out)
        for _ in range(KILLS):
            if before == [] and draw.random() < 0.5:  # else it goes on from what is there
                shutil.rmtree(place.out, ignore_errors=True)
            seen += list(kill_once(place, words, number, draw.uniform(0, length)))
        last = run_child(place, words)
        if last.code == 0 and digests(place.out) != wanted:
            seen.append("the run after the kills gives other bytes")
        left = [n for n in os.listdir(place.out) if n.startswith(".") or ".unverified" in n]
        seen += [f"an orphan: {name}" for name in left]
        place_of_temporary(place)
        return Outcome(last.code, 0.0, last.out, last.err, faults=tuple(seen))

    return act


def kill_once(
    place: Place, words: list[str], number: signal.Signals, delay: float
) -> Iterator[str]:
    child = Child(place, words)
    time.sleep(delay)
    with suppress(ProcessLookupError):  # it has ended by itself
        os.kill(child.pid, number)
    done = child.wait(60)
    yield from done.faults
    yield from survivors(place)
    if number != signal.SIGKILL and done.code not in (0, 128 + number, -number):
        yield f"{number.name} gave {done.code}: {done.err[-200:]}"
    if "Traceback" in done.err:
        yield f"a traceback: {done.err[-200:]}"
    for path in place.out.rglob("*.regcache") if place.out.exists() else ():
        if not any(part.startswith(".") for part in path.parts):
            try:
                Bundle.open(path)
            except RegCacheError as error:
                yield f"a partial bundle under its final name: {error}"
    for path in (*place.out.glob("*.json"), *place.out.glob("*.csv"), *place.out.glob("*.html")):
        if path.stat().st_size == 0:
            yield f"an empty {path.name}"


def survivors(place: Place, seconds: float = 10.0) -> Iterator[str]:
    """Processes that the command started, and that outlive it; they have its variables."""
    mark = f"TMPDIR={place.temporary}\0".encode()
    end, alive = time.monotonic() + seconds, list[str]()
    while time.monotonic() < end:
        alive = []
        for each in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if mark in (each / "environ").read_bytes() and each.name != str(os.getpid()):
                    alive.append(each.name)
        if not alive:
            return
        time.sleep(0.05)
    yield f"processes go on: {', '.join(alive)}"


def digests(out: Path) -> dict[str, str]:
    """Of what decides: bundles, tensors of the plan, embeddings. Documents hold times."""
    found = {}
    decide = ("*.regcache/*.onnx", "plan.safetensors", "*.npy", "*.jsonl")
    for path in sorted(path for pattern in decide for path in out.rglob(pattern)):
        found[str(path.relative_to(out))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def place_of_temporary(place: Place) -> None:
    """What SIGKILL leaves in TMPDIR is the system's to clear away."""
    shutil.rmtree(place.temporary)
    place.temporary.mkdir()


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A file system of its own in a folder; root alone can have one."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def full_disk(words_of: Words, size: str) -> Act:
    """The output on a disk that is too small; then the same on one that is not."""

    def act(place: Place) -> Outcome:
        words = words_of(place)
        with small_disk(place.out, size):
            done = run_child(place, words)
            left = [n for n in os.listdir(place.out) if n != "parts"]
            faults = [f"left on the full disk: {name}" for name in left]
            subprocess.run(["mount", "-o", "remount,size=64m", str(place.out)], check=True)
            again = run_child(place, words)
            if again.code != 0:
                faults.append(f"the next run ends with {again.code}: {again.err[-200:]}")
        place.out.rmdir()
        return Outcome(done.code, done.seconds, done.out, done.err, faults=tuple(faults))

    return act


def read_only(words_of: Words) -> Act:
    """Not by its mode, which root ignores."""

    def act(place: Place) -> Outcome:
        words = words_of(place)
        with small_disk(place.out, "1m"):
            subprocess.run(["mount", "-o", "remount,ro", str(place.out)], check=True)
            done = run_child(place, words)
        place.out.rmdir()
        return done

    return act


def no_room_for_scratch(place: Place) -> Outcome:
    words = build(place)
    place.temporary.rmdir()
    with small_disk(place.temporary, "16k"):
        return run_child(place, words)


def limited(words_of: Words, limits: Callable[[Place], Limits]) -> Act:
    return lambda place: run_child(place, words_of(place), 120, limits(place))


def without_images(place: Place) -> Outcome:
    """The images vanish while the command reads them."""
    words = place.export()
    shutil.rmtree(place.given / "images" / "cat")
    (place.given / "images" / "cat").mkdir()
    for index in range(16):
        os.mkfifo(place.given / "images" / "cat" / f"{index}.png")
    return run_child(place, words)


def at_once(place: Place) -> Outcome:
    """Two exports into one folder."""
    words = place.export()
    two = [Child(place, words), Child(place, words)]
    outcomes = [child.wait(120) for child in two]
    wrong = [f"exit code {each.code}: {each.err[-200:]}" for each in outcomes if each.code != 0]
    return Outcome(outcomes[0].code, faults=tuple(wrong))


def nobody(place: Place) -> Outcome:
    """A uid that the system does not know, without a home, as `docker run --user` gives."""
    words = ["eval", str(place.bundle()), "--data", str(place.images())]
    # the capability: what pytest and others make for root alone may be read
    before = ["setpriv", "--reuid=54321", "--inh-caps=+dac_override"]
    before += ["--ambient-caps=+dac_override"]
    variables = {"HOME": "", "XDG_CACHE_HOME": "", "MPLCONFIGDIR": "", "HF_HOME": ""}
    return run_apart(place, words, 60, before=before, trace=False, **variables)


def evaluate(place: Place) -> list[str]:
    return ["eval", str(place.bundle()), "--data", str(place.images())]


def closed_pipe(place: Place) -> Outcome:
    """Whoever read what is printed has gone."""
    command = [sys.executable, "-m", "regcache_deploy.cli.main", "doctor"]
    pipe, known = subprocess.PIPE, environment(place)
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, env=known)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    said = process.stderr.read().decode()
    return Outcome(0 if process.wait() in (0, 141) else process.returncode, err=said)


def closed_streams(words_of: Words) -> Act:
    """Nothing is open, as some daemons start their children."""

    def act(place: Place) -> Outcome:
        before = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]
        return run_apart(place, words_of(place), 120, before=before)

    return act


WHOLE = ("natural-vit-s14-naive.regcache", "plan.json", "plan.safetensors", "results.csv")
"""What an export has finished when memory ends behind it; judged to be whole."""

fault = partial(Fault, "processes", quick=False, seconds=600)
variables = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "COLUMNS": "20"}

FAULTS = [
    fault("kill-export", "SIGKILL at random instants of an export", killed(Place.export),
          error=None),
    fault("kill-search", "SIGKILL at random instants of a search", killed(Place.search),
          error=None),
    fault("kill-calibrate", "SIGKILL at random instants of a calibration", killed(calibrate),
          error=None),
    fault("kill-build", "SIGKILL at random instants of a decision", killed(build), error=None),
    fault("kill-embed", "SIGKILL at random instants while images are embedded", killed(embed),
          error=None),
    fault("kill-report", "SIGKILL at random instants of a report", killed(report), error=None),
    fault("term-export", "SIGTERM at random instants of an export",
          killed(Place.export, signal.SIGTERM), error=None),
    fault("term-build", "SIGTERM at random instants of a decision",
          killed(build, signal.SIGTERM), error=None),
    fault("term-embed", "SIGTERM at random instants while images are embedded",
          killed(embed, signal.SIGTERM), error=None),
    fault("int-search", "SIGINT at random instants of a search",
          killed(Place.search, signal.SIGINT), error=None),
    fault("full-export", "a disk of 100 KiB for an export", full_disk(Place.export, "100k"),
          error=ConfigError),
    fault("full-search", "a disk of 20 KiB for a search", full_disk(Place.search, "20k"),
          error=ConfigError),
    fault("full-calibrate", "a disk of 100 KiB for a calibration", full_disk(calibrate, "100k"),
          error=ConfigError),
    fault("full-scratch", "no room for temporary files", no_room_for_scratch, error=ConfigError),
    fault("file-size", "no file may have more than 50 KiB", limited(
        Place.export, lambda p: Limits(file_bytes=50_000)), error=ConfigError),
    fault("read-only-export", "an output on a read-only disk", read_only(Place.export),
          error=ConfigError),
    fault("read-only-calibrate", "a calibration onto a read-only disk", read_only(calibrate),
          error=ConfigError),
    fault("full-stdout", "no room for what is printed", limited(
        lambda p: ["doctor"], lambda p: Limits(stdout=Path("/dev/full"))), error=ConfigError),
    fault("closed-pipe", "nobody reads what is printed", closed_pipe, error=None),
    fault("closed-eval", "an evaluation without stdin, stdout and stderr",
          closed_streams(evaluate), error=None),
    fault("closed-export", "an export without stdin, stdout and stderr",
          closed_streams(Place.export), error=None),
    # with 40 MiB it may end inside of the C library, which aborts (127) on thread-local data
    fault("memory-export", "16 MiB of memory for an export", limited(
        Place.export, lambda p: Limits(memory_bytes=16 * MIB)), error=RegCacheError,
        leaves=WHOLE),
    fault("memory-eval", "8 MiB of memory for an evaluation", limited(
        evaluate, lambda p: Limits(memory_bytes=8 * MIB)), error=EngineError),
    fault("pipes-among-images", "images that became pipes", without_images, error=DataError),
    fault("at-once", "two exports into one folder at once", at_once, error=None),
    fault("nobody", "a user without a name and a home", nobody, error=None),
    fault("no-tmp", "a TMPDIR that is not there", limited(
        evaluate, lambda p: Limits(variables={"TMPDIR": str(p.root / "no")})), error=None),
    fault("ascii", "a terminal of ASCII and 20 columns", limited(
        evaluate, lambda p: Limits(variables=variables)), error=None),
]  # fmt: skip
