"""Peak memory of loading and running one file, measured in a process of its own.

    python -m regcache_deploy.bench.memory ENGINE MODEL THREADS BATCH PROFILE CACHE

A process that has loaded several runtimes cannot say which of them took what. The figure is the
largest resident set of a Python process that imports the runtime, loads the file and runs it
twice, code of the runtime included; `imports_mib` is what the process had before it loaded the
file. Memory on a GPU is apart: by how much what all processes use there grew, from before the file
was loaded to behind the second run. Other work on that GPU spoils it.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from regcache_engines.errors import EngineError

from ..evaluation.engines import ON_GPU, open_engine
from ..work.count import resident_peak
from .environment import gpu_used_mib

MODULE = "regcache_deploy.bench.memory"
TIMEOUT_S = 600

_OWN_MODULE = ("openvino", "tensorrt", "tensorrt_rtx")


@dataclass(frozen=True)
class Peak:
    """Largest resident set in MiB, that of the process before it loaded the file, and the GPU's.

    `gpu_mib` is None on a CPU, and where nvidia-ml-py is missing.
    """

    peak_mib: float
    imports_mib: float
    gpu_mib: float | None = None


def peak_memory(
    engine: str,
    model: Path,
    threads: int | None,
    batch: int,
    cache: Path,
    profile: Sequence[int] = (),
) -> Peak | None:
    """Run a child process and read its peak; None where the system does not tell (not Linux).

    Args:
        engine, model, threads, cache: as in `open_engine`.
        batch: images of a call.
        profile: batch sizes of the engine that was timed, so that it is found and not built again.

    Raises:
        EngineError: the child failed.
    """
    sizes = ",".join(map(str, profile or (batch,)))
    command = [sys.executable, "-m", MODULE, engine, str(model), str(threads or 0), str(batch)]
    command.append(sizes)
    try:
        done = subprocess.run(
            [*command, str(cache)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env=_environment(),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"measuring memory took longer than {TIMEOUT_S} s") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EngineError(f"measuring memory of {model} with {engine} failed: {last}")
    values = json.loads(done.stdout)
    if values["peak"] is None:
        return None
    return Peak(values["peak"], values["imports"], values["gpu"])


def _environment() -> dict[str, str]:
    """Ours, with what this interpreter imports from: the child may start elsewhere."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _peak_mib() -> float | None:
    peak = resident_peak()
    return None if peak is None else round(peak / 2**20, 1)


def main(arguments: list[str]) -> int:
    """The child."""
    import numpy as np

    from regcache_engines.engine import input_shape

    engine, model, threads, batch, profile, cache = arguments
    importlib.import_module(engine if engine in _OWN_MODULE else "onnxruntime")
    imports = _peak_mib()
    count, sizes = int(batch), [int(size) for size in profile.split(",")]
    before = gpu_used_mib() if engine in ON_GPU else None
    with open_engine(engine, Path(model), int(threads) or None, sizes, Path(cache)) as loaded:
        shape = (count, *input_shape(loaded.image_size, loaded.pixels))
        images = np.zeros(shape, np.uint8 if loaded.pixels else np.float32)
        for _ in range(2):
            loaded.infer(images)
        after = gpu_used_mib() if before is not None else None
    used = round(after - before, 1) if before is not None and after is not None else None
    print(json.dumps({"peak": _peak_mib(), "imports": imports, "gpu": used}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
