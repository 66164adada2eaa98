"""The runners that compute in torch, from the plan that a bundle was made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from regcache_engines.bundle import Bundle
from regcache_engines.preprocess import in_layout
from regcache_export.certificate_files import read_certificate
from regcache_export.plan import Plan
from regcache_export.plan_beside import load_plan

from ..data.stream import Batch
from ..quantization.plan import calibration_of
from ..quantization.plan_baseline import baseline_of
from ..quantization.simulate import Calibration, Quantization
from ..work.devices import halving, log_device, use_device
from ..work.threads import settle_threads
from .runner import BASELINE, FP32, SIMULATED, Runner


def torch_runners(
    bundle: Bundle, plan_folder: Path | None, threads: int | None, baseline: bool, device: str
) -> dict[str, Runner]:
    """FP32 and the simulation, and with `baseline` the quantizer alone, by name.

    FP32 is the plan's encoder without its quantizers and without RegCache. The baseline's folds
    are in its weights; they change no result beyond rounding. The baseline is `baseline_alone`.

    Args:
        bundle: open.
        plan_folder: where plan.json is; None is beside the bundle.
        threads: torch's, in this process, as `settle_threads` takes them.
        baseline: whether to calibrate the quantizer alone, too.
        device: where torch computes, as `find_device` takes it.

    Raises:
        BundleError: no plan there, or another bundle's.
        ConfigError: a plan whose baseline cannot be calibrated again.
    """
    settle_threads(threads)
    place = use_device(device)
    log_device(place)
    plan = load_plan(bundle, plan_folder)
    calibration = calibration_of(plan).to(place)
    plain = Calibration(calibration.encoder, Quantization())
    found = [_runner(FP32, plain), _runner(SIMULATED, calibration)]
    if baseline:
        found.append(_baseline_run(plan, calibration, bundle))
    return {runner.name: runner for runner in found}


def _runner(name: str, calibration: Calibration, note: str = "") -> Runner:
    return Runner(name, run_of(calibration), note, calibration)


def run_of(calibration: Calibration) -> Callable[[Batch], npt.NDArray[np.float32]]:
    """What a runner does with a batch, on the calibration's device."""
    numerics, encoder = calibration.numerics(), calibration.encoder

    def embed(images: Tensor) -> Tensor:
        return encoder(images, numerics, calibration.regcache).cpu()

    @torch.no_grad()
    def run(batch: Batch) -> npt.NDArray[np.float32]:
        features: npt.NDArray[np.float32]
        features = torch.cat(halving(embed, torch.from_numpy(batch.images))).numpy()
        return features

    return run


def _baseline_run(plan: Plan, calibration: Calibration, bundle: Bundle) -> Runner:
    pixels = read_certificate(bundle)[1]
    alone = baseline_alone(plan, calibration, pixels)
    note = (
        f"{BASELINE} is the plan's quantizer ({plan.provenance['baseline']}) without RegCache, "
        f"simulated, its ranges set on the certificate's {len(pixels)} images"
    )
    if any(bool(layer.treated) for layer in alone.quantization.linears.values()):
        note += "; smoothing and float channels of the plan are kept"
    return _runner(BASELINE, alone, note)


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
