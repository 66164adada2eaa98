"""`pip install` whose output is one line that moves: what pip does now, and for how long.

    python .ci/install.py ARGUMENTS-OF-PIP-INSTALL

pip's own words are printed where it fails. Without a terminal there is a line every ten seconds.
Compiling all of torch takes longer than the import of what is used, which compiles just that and
keeps it, so nothing is compiled here.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import TextIO

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install")
OPTIONS = ("--no-compile", "--progress-bar", "off")

MOVES = ("Collecting", "Downloading", "Using cached", "Building", "Preparing", "Installing")
"""How the lines of pip begin that say what it does."""

WIDTH = 90


def install(words: Sequence[str], out: TextIO = sys.stdout, wait: float = 0.5) -> int:
    """Run pip; returns its exit code.

    Args:
        words: behind `pip install`.
        out: where the line goes.
        wait: seconds between two looks.
    """
    started = told = time.monotonic()
    process = subprocess.Popen(
        [*PIP, *OPTIONS, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines: list[str] = []
    reader = threading.Thread(target=_read, args=(process, lines))
    reader.start()
    while reader.is_alive():
        reader.join(wait)
        now = time.monotonic()
        doing = next((x for x in reversed(lines) if x.startswith(MOVES)), "pip is starting")
        text = f"{doing[:WIDTH]} ({now - started:.0f} s)"
        if out.isatty():
            print(f"\r\033[K{text}", end="", file=out, flush=True)
        elif now - told >= 10:
            print(text, file=out, flush=True)
            told = now
    code = process.wait()
    if out.isatty():
        print("\r\033[K", end="", file=out)
    done = [line for line in lines if line.startswith("Successfully installed")]
    count = sum(len(line.split()) - 2 for line in done)
    if code:
        print("\n".join(lines), file=out)
    else:
        seconds = time.monotonic() - started
        print(f"installed {count} packages in {seconds:.0f} s", file=out, flush=True)
    return code


def _read(process: subprocess.Popen[str], lines: list[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line.strip())


if __name__ == "__main__":
    try:
        sys.exit(install(sys.argv[1:]))
    except KeyboardInterrupt:  # pip has it, too
        sys.exit(130)
