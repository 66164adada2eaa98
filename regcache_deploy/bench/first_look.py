"""A first look at the speed of a bundle that was just written; `regcache bench` measures it."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from regcache_engines.bundle import Bundle
from regcache_engines.preprocess import in_layout
from regcache_export.graph import build_model, serialize
from regcache_export.plan import Plan
from regcache_export.targets import GraphOptions

from ..evaluation.engines import open_engine
from ..work.progress import Reporter
from .environment import describe_machine
from .subjects import float_plan
from .timing import interleave

ENGINE = "onnxruntime"
ROUNDS, SECONDS = 20, 3.0
LARGEST = 2**30
"""Bytes of float weights from which nobody looks: the float file would be in memory twice."""


def first_look(
    plan: Plan,
    bundle: Path,
    options: GraphOptions,
    pixels: npt.NDArray[np.uint8],
    threads: int | None,
    reporter: Reporter,
) -> dict[str, Any] | None:
    """Time the bundle and the float file of the same encoder in turns, for some three seconds.

    Args:
        plan: of the bundle.
        bundle: its folder.
        options: how its graph was written.
        pixels: uint8 `[n, H, W, 3]`, n at least 1.
        threads: of ONNX Runtime.
        reporter: shows the stage.

    Returns:
        How many times as fast as the float file (`value`, `low`, `high`, `rounds`), `engine`,
        `batch`, `threads`, and the machine's `cpu`, `cores` and `load`; None above `LARGEST`.

    Raises:
        EngineError: a file does not run.
    """
    if sum(weight.nbytes for weight in plan.weights.values()) > LARGEST:
        return None
    machine = describe_machine()
    batch = options.batch or 1
    images = np.resize(pixels, (batch, *pixels.shape[1:]))
    with (
        reporter.stage("first look at speed"),
        tempfile.TemporaryDirectory(prefix="regcache-look-") as scratch,
        ExitStack() as stack,
    ):
        float_file = Path(scratch, "float.onnx")
        body = replace(options, body="float32")
        float_file.write_bytes(serialize(build_model(float_plan(plan), options=body)))
        runs = {}
        files: dict[str, Bundle | Path] = {"int8": Bundle.open(bundle), "fp32": float_file}
        for name, model in files.items():
            engine = stack.enter_context(open_engine(ENGINE, model, threads, [batch]))
            ready = in_layout(images, engine.pixels, plan.preprocess)
            runs[name] = lambda engine=engine, ready=ready: engine.infer(ready)
        samples = interleave(runs, ROUNDS, seconds=SECONDS, warmup=2, turn_ms=20, pause=0.005)
    found = asdict(samples.ratio("fp32", "int8"))
    named = {"engine": ENGINE, "batch": batch, "threads": threads or "default"}
    return found | named | {name: machine[name] for name in ("cpu", "cores", "load")}
