"""What `regcache eval` compares: FP32, the quantizer alone, the simulation, and engines."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt

from regcache_engines.bundle import Bundle
from regcache_engines.engine import Engine

from ..compat import require
from ..data.stream import Batch
from ..errors import ConfigError
from .engines import ENGINES, open_engine
from .runner import BASELINE, IN_TORCH, Runner

RUNNERS = (*IN_TORCH, *ENGINES)


def parse_runners(text: str) -> tuple[str, ...]:
    """`fp32,simulated,onnxruntime` -> names in that order.

    Raises:
        ConfigError: an unknown name, one named twice, or none.
    """
    names = tuple(name for name in re.split(r"[,\s]+", text) if name)
    unknown = [name for name in names if name not in RUNNERS]
    if unknown or not names or len(set(names)) < len(names):
        what = f"unknown: {unknown[0]}" if unknown else "empty" if not names else "one is twice"
        raise ConfigError(f"--on {text} ({what}); take any of: {', '.join(RUNNERS)}")
    return names


def make_runners(
    names: Sequence[str],
    bundle: Bundle,
    plan_folder: Path | None,
    threads: int | None,
    batch_size: int,
    stack: ExitStack,
    device: str = "cpu",
) -> list[Runner]:
    """Runners in the order of `names`; engines are closed with `stack`.

    A TensorRT engine is built into the user's cache, unless it is there. None is taken from beside
    the bundle, where it may have come with a download. FP32, baseline and simulation run on
    `device`, as `find_device` takes it.

    Raises:
        BundleError, EngineError: what a runner needs is not there or damaged.
        ConfigError: a plan whose baseline cannot be calibrated again, or torch is not installed.
    """
    runners: dict[str, Runner] = {}
    if set(IN_TORCH) & set(names):
        require("torch", "search")
        from .torch_runners import torch_runners

        runners = torch_runners(bundle, plan_folder, threads, BASELINE in names, device)
    for name in set(names) & set(ENGINES):
        engine = stack.enter_context(open_engine(name, bundle, threads, (1, batch_size)))
        runners[name] = Runner(name, _engine_run(engine))
    return [runners[name] for name in names]


def _engine_run(engine: Engine) -> Callable[[Batch], npt.NDArray[np.float32]]:
    return lambda batch: engine.infer(batch.in_layout(engine.pixels))
