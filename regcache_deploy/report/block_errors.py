"""How the error grows from block to block: FP32 against the simulation and the deployed graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from regcache_engines.bundle import MODEL, Bundle
from regcache_engines.preprocess import in_layout
from regcache_export.bundle_graph import graph_options
from regcache_export.certificate_files import read_certificate
from regcache_export.plan_beside import load_plan
from regcache_export.spec import EncoderSpec
from regcache_export.targets import find_target
from regcache_export.trace import Tracer, fixed_batch, graph_input

from ..encoders.canonical import FLOAT, Numerics
from ..evaluation.layer_error import alone_errors
from ..quantization.plan import calibration_of
from ..quantization.simulate import Calibration
from ..work.devices import use_device
from ..work.progress import Advance, Reporter
from .kept_errors import keep_errors, kept_errors

IMAGES = 8


def kept_block_errors(
    bundle: Bundle, folder: Path, reporter: Reporter, device: str = "cpu"
) -> dict[str, Any]:
    """`measure_block_errors`, or what it found of the same files before.

    Args:
        bundle: open.
        folder: of the run; its plan is taken where it has one.
        reporter: shows the measurement.
        device: as `measure_block_errors` takes it.

    Raises:
        BundleError: as `measure_block_errors`.
    """
    kept = kept_errors(bundle, folder)
    if kept is not None:
        return kept
    place = folder if (folder / "plan.json").is_file() else None
    total = bundle.manifest["quantized_linears"] + 3
    with reporter.stage("error by layer", total) as advance:
        errors = measure_block_errors(bundle, place, advance, device)
    keep_errors(bundle, folder, errors)
    return errors


@torch.no_grad()
def measure_block_errors(
    bundle: Bundle,
    plan_folder: Path | None = None,
    advance: Advance = lambda n=1: None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Errors on the first calibration images in the bundle.

    The reference is the float encoder with the same RegCache, so that only quantization counts.
    Compared is the summary that pooling reads: the class token, or the mean of all tokens.
    The deployed graph runs with optimizations off, because only then its inner tensors are there.
    `advance` is told of every linear, and once more of each of the three whole passes.

    Args:
        device: of the simulation, as `find_device` takes it.

    Returns:
        `images`; `alone`: linear -> one minus the cosine of the features with only it quantized;
        `simulated` and `deployed`: relative error after each block.

    Raises:
        BundleError: no plan beside the bundle, no images in it, or a form without traceable blocks.
    """
    plan = load_plan(bundle, plan_folder)
    options = graph_options(bundle)
    calibration = calibration_of(plan).to(use_device(device))
    pixels = read_certificate(bundle)[1]
    model = onnx.load_model_from_string(bundle.read(MODEL))
    pixels = pixels[: fixed_batch(model) or IMAGES]
    images = torch.from_numpy(in_layout(pixels, None, bundle.preprocess))
    reference = _after_blocks(calibration, images, FLOAT)
    advance()
    simulated = _after_blocks(calibration, images, calibration.numerics())
    advance()
    found: dict[str, Any] = {
        "images": len(pixels),
        "alone": alone_errors(calibration, images, advance),
        "simulated": _relative(simulated, reference),
    }
    if find_target(options.target).form == "as_written":
        tracer = Tracer(model, plan.encoder)
        trace = tracer.run(graph_input(pixels, bundle.preprocess, model))
        deployed = [
            _summary(torch.from_numpy(trace.values[name]), plan.encoder)
            for name in (*tracer.tensors.block_inputs[1:], tracer.tensors.outputs[-1])
        ]
        found["deployed"] = _relative(deployed, reference)
    advance()
    return found


def _after_blocks(calibration: Calibration, images: Tensor, numerics: Numerics) -> list[Tensor]:
    encoder, seen = calibration.encoder, []

    def observe(index: int, tokens: Tensor) -> None:
        seen.append(_summary(tokens, encoder.spec))

    tokens = encoder.run_blocks(
        encoder.embed(images), 0, None, numerics, calibration.regcache, observe
    )
    return [*seen[1:], _summary(tokens, encoder.spec)]


def _summary(tokens: Tensor, spec: EncoderSpec) -> Tensor:
    """`[B, N, D]` -> `[B, D]`; the order of tokens, which a deletion may change, has no part."""
    if spec.pool == "cls" and spec.num_prefix_tokens:
        return tokens[:, 0].cpu().double()
    return tokens.cpu().double().mean(dim=1)


def _relative(found: list[Tensor], reference: list[Tensor]) -> list[float]:
    return [
        float(((a - b).norm(dim=1) / b.norm(dim=1).clamp_min(1e-12)).mean())
        for a, b in zip(found, reference, strict=True)
    ]
