"""How fast the graphs of several schedules of token merging are, against the unmerged one."""

from __future__ import annotations

import csv
import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from regcache_engines.preprocess import in_layout
from regcache_export.graph import build_model, serialize
from regcache_export.plan import Plan
from regcache_export.targets import GraphOptions

from ..errors import DataError
from ..evaluation.engines import open_engine
from .timing import Interval, interleave

ENGINE = "onnxruntime"
ROUNDS, SECONDS = 15, 10.0
"""Of each pair of graphs."""

COLUMNS = ("merge", "delete_count", "ms")
"""What a file of latencies must have; others are left alone."""

Key = tuple[str, int]
"""Schedule as written, and tokens that RegCache deletes."""


@dataclass(frozen=True)
class Latency:
    """One graph.

    Attributes:
        ms: of a call: the unmerged graph's median over `speedup`, so that all are comparable.
        speedup: over the unmerged graph.
    """

    ms: float
    speedup: Interval


def measure_latency(
    plans: Mapping[Key, Plan],
    first: Key,
    options: GraphOptions,
    pixels: npt.NDArray[np.uint8],
    threads: int | None,
) -> Iterator[tuple[Key, Latency]]:
    """Time every graph in turns with the unmerged one, in ONNX Runtime.

    Two graphs are in memory at a time. The plan's quantizers may be those of another schedule: a
    graph's speed does not depend on them.

    Args:
        plans: graphs.
        first: the unmerged one among them.
        options: how the graphs are written.
        pixels: uint8 `[n, H, W, 3]`; one batch is taken from the front.
        threads: of ONNX Runtime.

    Raises:
        EngineError: a graph does not run.
    """
    batch = options.batch or 1
    images = np.resize(pixels, (batch, *pixels.shape[1:]))
    with tempfile.TemporaryDirectory(prefix="regcache-merge-") as scratch, ExitStack() as outer:
        folder, base_ms = Path(scratch), math.nan
        files = {"first": _write(folder / "first.onnx", plans[first], options)}
        base = outer.enter_context(open_engine(ENGINE, files["first"], threads, [batch], folder))
        for key, plan in plans.items():
            path = _write(folder / "other.onnx", plan, options)
            with open_engine(ENGINE, path, threads, [batch], folder) as other:
                runs = {}
                for name, engine in {"first": base, "other": other}.items():
                    ready = in_layout(images, engine.pixels, plan.preprocess)
                    runs[name] = lambda engine=engine, ready=ready: engine.infer(ready)
                samples = interleave(
                    runs, ROUNDS, seconds=SECONDS, warmup=2, turn_ms=30, pause=0.005
                )
            if math.isnan(base_ms):
                base_ms = samples.percentile("first", 50)
            speedup = samples.ratio("first", "other")
            yield key, Latency(base_ms / speedup.value, speedup)


def read_latency(path: Path) -> dict[Key, float]:
    """Milliseconds of every graph, on another machine.

    Raises:
        DataError: it cannot be read, lacks a column, or a figure is none.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            found = {
                (row["merge"].strip(), int(row["delete_count"])): float(row["ms"])
                for row in csv.DictReader(file)
            }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise DataError(
            f"--latency {path} cannot be read ({error!r}); it has the columns {', '.join(COLUMNS)}"
        ) from error
    if not all(math.isfinite(ms) and ms > 0 for ms in found.values()):
        raise DataError(f"--latency {path}: a latency is not a positive number of milliseconds")
    return found


def given_latency(path: Path, first: Key) -> dict[Key, Latency]:
    """The same as latencies over the unmerged graph; raises DataError, too, where that is absent.

    There is no interval: both ends are the ratio.
    """
    found = read_latency(path)
    if first not in found:
        schedule, deleted = first
        raise DataError(
            f"--latency {path} has no row of the unmerged graph (merge {schedule}, delete_count "
            f"{deleted}), which all others are compared with"
        )
    over = found[first]
    return {
        key: Latency(ms, Interval(over / ms, over / ms, over / ms, 0)) for key, ms in found.items()
    }


def _write(path: Path, plan: Plan, options: GraphOptions) -> Path:
    path.write_bytes(serialize(build_model(plan, options=options)))
    return path
