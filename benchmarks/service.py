"""What a service does to an engine: threads, mixed batches, for minutes, under a memory limit.

    python benchmarks/service.py BUNDLE... --seconds 600 --output benchmarks/results/service-X.csv

Every bundle on every runtime that is installed, each in a process of its own whose private memory
is limited (RLIMIT_DATA). Batches of 1 to 16 images are prepared, and each is run once by one
thread alone. Then all threads run batches in random order, first to warm up, then for the time
that is asked for. Every answer is compared with that of the batch alone, bit for bit; a wrong one
ends the run with code 6. A row has the times of a call by batch size, and resident memory behind
the warm-up and at the end; growth beyond `--growth` MiB ends it with code 6 as well.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import regcache_engines
from regcache_deploy.bench.environment import describe_machine
from regcache_deploy.bench.results import write_rows
from regcache_engines.errors import EngineError, RegCacheError, VerificationError

RUNTIMES = ("onnxruntime", "openvino")
SIZES = (1, 2, 4, 8, 16)
PER_SIZE = 3
"""Prepared batches of each size."""


@dataclass(frozen=True)
class Load:
    """How a bundle is loaded.

    Attributes:
        threads: that call at once.
        inside: threads inside a run of the engine.
        seconds, warm_up: of measuring, and before.
        limit: MiB of private memory.
        growth: MiB that resident memory may grow behind the warm-up.
    """

    threads: int = 4
    inside: int = 1
    seconds: float = 60.0
    warm_up: float = 5.0
    limit: int = 1024
    growth: float = 16.0


def resident_mib() -> float:
    """Resident memory of this process."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.findall(r"^VmRSS:\s+(\d+)", text, re.MULTILINE)[0]) / 1024


def serve(bundle: Path, runtime: str, load: Load) -> dict[str, Any]:
    """Load one bundle in this process.

    Raises:
        EngineError: the runtime is missing or failed.
        VerificationError: a wrong answer, or memory that grows.
    """
    resource.setrlimit(resource.RLIMIT_DATA, (load.limit << 20, load.limit << 20))
    draw = np.random.default_rng(0)
    with regcache_engines.open(bundle, threads=load.inside, runtime=runtime) as clip:
        shape = (*clip.image_size, 3)
        batches = [
            draw.integers(0, 256, (size, *shape), dtype=np.uint8)
            for size in SIZES
            for _ in range(PER_SIZE)
        ]
        alone = [clip.embed_images(batch) for batch in batches]
        runs = _Runs(clip, batches, alone)
        runs.by_threads(load.threads, load.warm_up)
        before, runs.times = resident_mib(), {}
        started = time.monotonic()
        runs.by_threads(load.threads, load.seconds)
        seconds, after = time.monotonic() - started, resident_mib()
    answers = sum(map(len, runs.times.values()))
    row = {"answers": answers, "wrong": runs.wrong, "seconds": round(seconds, 1)}
    images = sum(size * len(times) for size, times in runs.times.items())
    row["images_per_second"] = round(images / seconds, 2)
    row |= {"warm_mib": round(before, 1), "end_mib": round(after, 1)}
    for size, times in sorted(runs.times.items()):
        p50, p99 = np.percentile(times, [50, 99]) * 1e3
        row |= {f"p50_ms_{size}": round(p50, 2), f"p99_ms_{size}": round(p99, 2)}
    if runs.wrong:
        raise VerificationError(f"{runs.wrong} of {answers} answers are not those of one thread")
    if after - before > load.growth:
        raise VerificationError(f"memory grew from {before:.0f} to {after:.0f} MiB")
    return row


class _Runs:
    """Batches by several threads at once, each answer compared with the one that is known."""

    def __init__(self, clip: regcache_engines.Clip, batches: list[Any], alone: list[Any]) -> None:
        self._clip, self._batches, self._alone = clip, batches, alone
        self._lock = threading.Lock()
        self.times: dict[int, list[float]] = {}
        self.wrong = 0

    def by_threads(self, count: int, seconds: float) -> None:
        end, failed = time.monotonic() + seconds, list[BaseException]()

        def work(seed: int) -> None:
            choose = random.Random(seed)
            try:
                while time.monotonic() < end and not failed:
                    self._one(choose.randrange(len(self._batches)))
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]

    def _one(self, index: int) -> None:
        batch = self._batches[index]
        started = time.perf_counter()
        found = self._clip.embed_images(batch)
        spent = time.perf_counter() - started
        with self._lock:
            self.times.setdefault(len(batch), []).append(spent)
            self.wrong += not np.array_equal(found, self._alone[index])


def in_a_process(bundle: Path, runtime: str, load: Load) -> dict[str, Any]:
    """`serve` in a process of its own; the reason in place of figures where it cannot run."""
    words = [str(bundle), "--child", runtime, "--load", json.dumps(asdict(load))]
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, __file__, *words],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
        check=False,
    )
    if done.returncode == EngineError.exit_code:
        return {"reason": done.stderr.strip().splitlines()[-1]}
    if done.returncode:
        raise VerificationError(f"{bundle} in {runtime}: {done.stderr.strip()}")
    row: dict[str, Any] = json.loads(done.stdout)
    return row


def main(arguments: list[str] | None = None) -> int:
    """Run, print, and write the rows; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("bundles", type=Path, nargs="+")
    usual = Load()
    parser.add_argument("--threads", type=int, default=usual.threads)
    parser.add_argument("--inside", type=int, default=usual.inside)
    parser.add_argument("--seconds", type=float, default=usual.seconds)
    parser.add_argument("--warm-up", type=float, default=usual.warm_up)
    parser.add_argument("--limit", type=int, default=usual.limit)
    parser.add_argument("--growth", type=float, default=usual.growth)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--load", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    try:
        if args.child:
            load = Load(**json.loads(args.load))
            print(json.dumps(serve(args.bundles[0], args.child, load)))
            return 0
        load = Load(**{name: getattr(args, name) for name in asdict(usual)})
        machine = describe_machine()
        rows = [
            {"bundle": bundle.stem, "runtime": runtime, **asdict(load)}
            | in_a_process(bundle, runtime, load)
            for bundle in args.bundles
            for runtime in RUNTIMES
        ]
    except RegCacheError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for row in rows:
        print(json.dumps(row))
    if args.output:
        write_rows(args.output, rows, {"cpu": machine["cpu"], "cores": machine["cores"]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
