"""Resident memory of a process that serves an ONNX file, by threads and copies of the model.

    python benchmarks/merge.py --prepare
    python benchmarks/runtime_memory.py runs/merge/tuned_none.onnx

One process a row, so that none inherits another's memory. Linux only.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np

from regcache_engines.load import load_engine

FORMS: tuple[tuple[int, bool | None], ...] = ((1, None), (2, False), (2, None), (2, True))
"""Threads, and `pieces` of `load_engine`."""

BATCHES = (1, 8, 32)


def mib(field: str) -> int:
    """A field of this process' status, in MiB."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return round(int(line.split()[1]) / 1024)
    raise KeyError(field)


def measure(path: Path, threads: int, pieces: bool | None) -> list[int]:
    """Resident MiB once open and behind each batch but the last, and the peak at the end."""
    with load_engine(path, threads=threads, pieces=pieces) as engine:
        found = [mib("VmRSS")]
        for batch in BATCHES:
            shape, kind = (batch, 3, *engine.image_size), np.float32
            engine.infer(np.zeros(shape, kind))
            found.append(mib("VmRSS"))
    return [*found[:-1], mib("VmHWM")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path, metavar="MODEL.onnx")
    parser.add_argument("--form", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.form is not None:
        print(*measure(args.model, *FORMS[args.form]))
        return 0
    print("threads | pieces | open | batch 1 | batch 8 | peak, batch 32")
    for form, (threads, pieces) in enumerate(FORMS):
        command = [sys.executable, __file__, str(args.model), "--form", str(form)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        print(" | ".join([str(threads), str(pieces), *done.stdout.split()]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
