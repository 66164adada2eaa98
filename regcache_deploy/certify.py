"""The simulation's side of the certificate: PyTorch against the graph, and the files of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

from regcache_engines.bundle import Bundle
from regcache_export.bundle import add_files
from regcache_export.certificate import (
    CERTIFICATE,
    IMAGES,
    Subject,
    collect,
    describe,
    first_divergence,
    free_run,
    images_file,
    json_bytes,
    make_document,
)
from regcache_export.compare import Forced, Simulated
from regcache_export.optimized import compare_optimized
from regcache_export.plan import Plan
from regcache_export.targets import GraphOptions

from .encoders.canonical import Encoder
from .encoders.regcache import RegCache
from .errors import VerificationError
from .quantization.quantizers import Uniform
from .quantization.simulate import Calibration, SimulatedNumerics

IMAGE_COUNT = 32

Array = npt.NDArray[Any]


class ForcedNumerics(SimulatedNumerics):
    """The simulation, going on with the graph's codes behind every quantizer."""

    def __init__(self, calibration: Calibration) -> None:
        super().__init__(calibration.quantization)
        self.forced: dict[str, Tensor] = {}
        self.steps: dict[str, Array] = {}
        self.codes: dict[str, Array] = {}

    def linear(self, name: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        layer = self.quantization.linears.get(name)
        if layer is None:
            return super().linear(name, x, weight, bias)
        quantizer, weights = layer.input, layer.weight
        assert isinstance(quantizer, Uniform)
        assert isinstance(weights, Uniform)
        middle = origin(quantizer)
        codes = quantizer.codes(x)
        steps = x / quantizer.scale + (quantizer.zero_point - middle)
        self.steps[name] = steps.numpy()
        self.codes[name] = (codes - middle).to(torch.int16).numpy()
        graph = self.forced[name]
        codes[:, : graph.shape[1]] = graph + middle
        product = F.linear(codes - quantizer.zero_point, self._once(name, weight, weights.integers))
        return product * (quantizer.scale * weights.scale.flatten()) + bias


def origin(quantizer: Uniform) -> int:
    """What is subtracted from the simulation's codes to give levels: 0 for signed ones."""
    return 0 if quantizer.signed else 2 ** (quantizer.bits - 1)


@dataclass(frozen=True)
class _ForcedEncoder(Encoder):
    """Deletes the tokens that the graph deletes, and notes which ones it would have deleted."""

    forced: list[Tensor] = field(default_factory=list)
    found: list[Array] = field(default_factory=list)

    def _delete(self, index: int, tokens: Tensor, regcache: RegCache | None, place: str) -> Tensor:
        if regcache is None:
            return tokens
        config, special = regcache.config, self.spec.num_prefix_tokens
        if index != config.delete_block or not config.deletes or config.delete_at != place:
            return tokens
        patches = tokens[:, special:]
        order = torch.sort(patches.abs().amax(dim=-1), dim=1, stable=True).indices
        self.found.append(order[:, : patches.shape[1] - config.delete_count].numpy())
        kept = self.forced[0] if self.forced else order[:, : patches.shape[1] - config.delete_count]
        keep = kept.unsqueeze(-1).expand(-1, -1, patches.shape[-1])
        return torch.cat([tokens[:, :special], torch.gather(patches, 1, keep)], dim=1)


class TorchSimulator:
    """`regcache_export.compare.Simulator` over a calibration in PyTorch."""

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration
        self.numerics = ForcedNumerics(calibration)

    @torch.no_grad()
    def block(self, index: int, tokens: Array, forced: Forced) -> Simulated:
        """See `Simulator.block`."""
        numerics, source = self.numerics, self.calibration.encoder
        numerics.steps, numerics.codes = {}, {}
        numerics.forced = {
            name: torch.from_numpy(codes.astype(np.float32)) for name, codes in forced.codes.items()
        }
        encoder = _ForcedEncoder(source.spec, source.weights)
        if forced.positions is not None:
            encoder.forced.append(torch.from_numpy(forced.positions))
        output = encoder.block(
            index, torch.from_numpy(tokens), numerics, self.calibration.regcache
        ).numpy()
        positions = encoder.found[0] if encoder.found else None
        return Simulated(dict(numerics.steps), dict(numerics.codes), positions, output)


def graph_offsets(plan: Plan, model: onnx.ModelProto) -> dict[str, int]:
    """Linear -> what is subtracted from the graph's codes to give levels.

    Signed codes are levels; unsigned ones are levels plus half their range; and a target may store
    signed codes in uint8, 128 higher.
    """
    stored = {
        tensor.name: tensor.data_type
        for tensor in model.graph.initializer
        if tensor.name.endswith(".input_zero_point")
    }
    offsets = {}
    for name, layer in plan.linears.items():
        unsigned = stored.get(f"{name}.input_zero_point") == onnx.TensorProto.UINT8
        half = 128 if layer.input.signed else 2 ** (layer.input.bits - 1)
        offsets[name] = half if unsigned else 0
    return offsets


def certify_bundle(
    path: Path,
    plan: Plan,
    options: GraphOptions,
    calibration: Calibration,
    pixels: Tensor,
) -> dict[str, Any]:
    """Compare a bundle with the simulation and put the certificate into it.

    Args:
        path: the bundle.
        plan, options: what it was written from.
        calibration: the simulation.
        pixels: uint8 `[n, H, W, 3]`; they travel in the bundle, so that anyone can verify it.

    Returns:
        The certificate.

    Raises:
        VerificationError: the graph is not the simulated one; the message names the first
            divergent node, and the bundle stays without a certificate.
    """
    bundle = Bundle.open(path)
    model = onnx.load(str(bundle.model_path), load_external_data=False)
    subject = Subject(
        model=model,
        spec=plan.encoder,
        regcache=plan.regcache,
        options=options,
        offsets=graph_offsets(plan, model),
        preprocess=plan.preprocess,
    )
    images = pixels.contiguous().numpy()
    evidence = collect(subject, images, TorchSimulator(calibration))
    divergent = first_divergence(list(evidence.comparison.counts.values()))
    if divergent is not None:
        raise VerificationError(
            f"the graph is not the simulated one; first divergent node: {describe(divergent)}"
        )
    head = bundle.text_features if bundle.has_text_features else None
    optimized = compare_optimized(bundle.model_path, subject, images, evidence.features, head)
    if not optimized.near:
        control = free_run(subject, images[: len(evidence.features)])
        optimized = optimized.with_control(evidence.features, control)
    if optimized.problem:
        raise VerificationError(optimized.problem)
    section = {
        "top1": optimized.top1,
        "mean_cosine": optimized.mean_cosine,
        "min_cosine": optimized.min_cosine,
        "control": optimized.control,
    }
    document = make_document(
        subject, evidence, {"optimized": section}, f"torch {torch.__version__}"
    )
    add_files(path, {CERTIFICATE: json_bytes(document), IMAGES: images_file(images)})
    return document
