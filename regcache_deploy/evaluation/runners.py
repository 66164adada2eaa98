"""The same images through PyTorch in FP32, through the simulation, and through a bundle."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from regcache_engines.bundle import Bundle
from regcache_engines.engine import Engine
from regcache_export.plan_beside import load_plan

from ..data.stream import Batch
from ..errors import ConfigError
from ..quantization.plan import calibration_of
from .engines import ENGINES, open_engine

FP32, SIMULATED = "fp32", "simulated"
RUNNERS = (FP32, SIMULATED, *ENGINES)


@dataclass(frozen=True)
class Runner:
    """Something that turns a batch into embeddings `[b, E]`, float32, not L2-normalized."""

    name: str
    run: Callable[[Batch], Tensor] = field(repr=False)


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
) -> list[Runner]:
    """Runners in the order of `names`; engines are closed with `stack`.

    A TensorRT engine is built into the user's cache, unless it is there. None is taken from beside
    the bundle, where it may have come with a download.

    FP32 is the plan's encoder without its quantizers and without RegCache. The baseline's folds
    are in its weights; they change no result beyond rounding.

    Raises:
        BundleError, EngineError: what a runner needs is not there or damaged.
    """
    runners: dict[str, Runner] = {}
    if {FP32, SIMULATED} & set(names):
        calibration = calibration_of(load_plan(bundle, plan_folder))
        numerics, encoder = calibration.numerics(), calibration.encoder
        runners[FP32] = Runner(FP32, lambda batch: encoder(batch.images))
        runners[SIMULATED] = Runner(
            SIMULATED, lambda batch: encoder(batch.images, numerics, calibration.regcache)
        )
    for name in set(names) & set(ENGINES):
        engine = stack.enter_context(open_engine(name, bundle, threads, (1, batch_size)))
        runners[name] = Runner(name, _engine_run(engine))
    return [runners[name] for name in names]


def _engine_run(engine: Engine) -> Callable[[Batch], Tensor]:
    def run(batch: Batch) -> Tensor:
        images = batch.images if engine.pixels is None else batch.pixels
        if engine.pixels == "nchw":
            images = images.permute(0, 3, 1, 2)
        return torch.from_numpy(engine.infer(images.contiguous().numpy()))

    return run
