"""Resident memory of a process that serves an ONNX file, by threads and copies of the model.

    python benchmarks/merge.py --prepare
    python benchmarks/runtime_memory.py runs/merge/tuned_none.onnx  # or a bundle

One process a row, so that none inherits another's memory. "Own" is what no other process shares:
behind batch 8, without pages of files. Linux only.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from regcache_engines.load import load_engine

Form = tuple[int, bool | None, bool]
FORMS: tuple[Form, ...] = (
    (1, None, False),
    (2, False, False),
    (2, None, False),
    (2, True, False),
    (1, None, True),
    (2, None, True),
)
"""Threads, `pieces` of `load_engine`, and whether it has an `mmap_folder`."""

BATCHES = (1, 8, 32)


def mib(field: str) -> int:
    """A field of this process' status, in MiB."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return round(int(line.split()[1]) / 1024)
    raise KeyError(field)


def measure(
    path: Path, threads: int, pieces: bool | None, folder: Path | None = None
) -> list[float]:
    """What a form costs.

    Returns:
        Resident MiB once open and behind each batch but the last, the peak at the end, MiB of its
        own, and milliseconds of CPU time of one image: the least of 20 calls.
    """
    with load_engine(path, threads=threads, pieces=pieces, mmap_folder=folder) as engine:
        found, own = [mib("VmRSS")], 0
        for batch in BATCHES:
            shape, kind = (batch, 3, *engine.image_size), np.float32
            engine.infer(np.zeros(shape, kind))
            found.append(mib("VmRSS"))
            own = mib("RssAnon") if batch == BATCHES[1] else own
        peak, image, times = mib("VmHWM"), np.zeros((1, 3, *engine.image_size), np.float32), []
        for _ in range(20):
            begin = time.process_time()
            engine.infer(image)
            times.append(time.process_time() - begin)
    return [*found[:-1], peak, own, round(1000 * min(times), 1)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path, metavar="MODEL.onnx|BUNDLE")
    parser.add_argument("--form", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.form is not None:
        threads, pieces, mapped = FORMS[args.form]
        print(*measure(args.model, threads, pieces, args.folder if mapped else None))
        return 0
    print("threads | pieces | mapped | open | batch 1 | batch 8 | peak, batch 32 | own | ms")
    with tempfile.TemporaryDirectory() as folder:
        load_engine(args.model, threads=1, mmap_folder=Path(folder)).close()
        for form, words in enumerate(FORMS):
            command = [sys.executable, __file__, str(args.model), "--form", str(form)]
            command += ["--folder", folder]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            print(" | ".join([*map(str, words), *done.stdout.split()]), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
