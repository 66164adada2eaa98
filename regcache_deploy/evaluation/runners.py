"""The same images through FP32, the quantizer alone, the simulation, and a bundle."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from regcache_engines.bundle import Bundle
from regcache_engines.engine import Engine
from regcache_export.plan import Plan
from regcache_export.plan_beside import load_plan
from regcache_export.trace import in_layout
from regcache_export.verify import read_certificate

from ..data.stream import Batch
from ..errors import ConfigError
from ..quantization.plan import calibration_of
from ..quantization.plan_baseline import baseline_of
from ..quantization.simulate import Calibration, Quantization
from ..work.devices import halving, log_device, use_device
from .engines import ENGINES, open_engine

FP32, BASELINE, SIMULATED = "fp32", "baseline", "simulated"
RUNNERS = (FP32, BASELINE, SIMULATED, *ENGINES)


@dataclass(frozen=True)
class Runner:
    """Something that turns a batch into embeddings `[b, E]`, float32, not L2-normalized.

    Attributes:
        note: how it came to be, where its name does not say it; for people.
    """

    name: str
    run: Callable[[Batch], Tensor] = field(repr=False)
    note: str = ""


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

    FP32 is the plan's encoder without its quantizers and without RegCache. The baseline's folds
    are in its weights; they change no result beyond rounding. The baseline is `baseline_alone`.

    Raises:
        BundleError, EngineError: what a runner needs is not there or damaged.
        ConfigError: a plan whose baseline cannot be calibrated again.
    """
    runners: dict[str, Runner] = {}
    if {FP32, BASELINE, SIMULATED} & set(names):
        plan = load_plan(bundle, plan_folder)
        place = use_device(device)
        log_device(place)
        calibration = calibration_of(plan).to(place)
        plain = Calibration(calibration.encoder, Quantization())
        runners[FP32] = Runner(FP32, _torch_run(plain))
        runners[SIMULATED] = Runner(SIMULATED, _torch_run(calibration))
        if BASELINE in names:
            runners[BASELINE] = _baseline_run(plan, calibration, bundle)
    for name in set(names) & set(ENGINES):
        engine = stack.enter_context(open_engine(name, bundle, threads, (1, batch_size)))
        runners[name] = Runner(name, _engine_run(engine))
    return [runners[name] for name in names]


def _baseline_run(plan: Plan, calibration: Calibration, bundle: Bundle) -> Runner:
    pixels = read_certificate(bundle)[1]
    alone = baseline_alone(plan, calibration, pixels)
    note = (
        f"{BASELINE} is the plan's quantizer ({plan.provenance['baseline']}) without RegCache, "
        f"simulated, its ranges set on the certificate's {len(pixels)} images"
    )
    if any(bool(layer.treated) for layer in alone.quantization.linears.values()):
        note += "; smoothing and float channels of the plan are kept"
    return Runner(BASELINE, _torch_run(alone), note)


def _torch_run(calibration: Calibration) -> Callable[[Batch], Tensor]:
    numerics, encoder = calibration.numerics(), calibration.encoder

    def embed(images: Tensor) -> Tensor:
        return encoder(images, numerics, calibration.regcache).cpu()

    return lambda batch: torch.cat(halving(embed, batch.images))


@torch.no_grad()
def baseline_alone(plan: Plan, calibration: Calibration, pixels: np.ndarray) -> Calibration:
    """The plan's quantizer calibrated again, without prefix and deletion.

    A plan stores nothing of it: its ranges are those with RegCache in place.

    Args:
        calibration: of the plan.
        pixels: uint8 `[n, H, W, 3]`, to set ranges on.

    Raises:
        ConfigError: a plan whose baseline cannot be calibrated again.
    """
    baseline, encoder = baseline_of(plan, calibration), calibration.encoder
    images = torch.from_numpy(in_layout(pixels, None, plan.preprocess))
    return baseline.calibrate(encoder, encoder.embed(images))


def _engine_run(engine: Engine) -> Callable[[Batch], Tensor]:
    def run(batch: Batch) -> Tensor:
        images = batch.images if engine.pixels is None else batch.pixels
        if engine.pixels == "nchw":
            images = images.permute(0, 3, 1, 2)
        return torch.from_numpy(engine.infer(images.contiguous().numpy()))

    return run
