"""The simulation's side of the certificate: PyTorch against the graph, and the files of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

from regcache_engines.bundle import MODEL, Bundle
from regcache_engines.preprocess import in_layout
from regcache_export.bundle import add_files
from regcache_export.certificate import (
    Evidence,
    Subject,
    collect,
    describe,
    file_hashes,
    first_divergence,
    first_user,
    header_hash,
    images_file,
    json_bytes,
    make_document,
    parameter_hashes,
)
from regcache_export.certificate_files import CERTIFICATE, IMAGES
from regcache_export.claims import entry_hashes
from regcache_export.compare import Forced, Simulated, leading
from regcache_export.float32_copy import in_float32
from regcache_export.graph import build_model
from regcache_export.graph.float16 import to_float16
from regcache_export.optimized import compare_optimized
from regcache_export.plan import Plan
from regcache_export.rounding_noise import controlled
from regcache_export.survivors import Left
from regcache_export.survivors import Pairs as NumpyPairs
from regcache_export.targets import GraphOptions

from ..encoders.canonical import Encoder
from ..encoders.merging import Pairs
from ..encoders.rotary import Survivors
from ..errors import VerificationError
from ..quantization.quantizers import Uniform
from ..quantization.simulate import Calibration, SimulatedNumerics
from ..quantization.traced import traced

Array = npt.NDArray[Any]


class ForcedNumerics(SimulatedNumerics):
    """The simulation, going on with the graph's codes behind every quantizer.

    Args:
        calibration: the simulation.
        published: linears and attention products that the graph has as published.
    """

    def __init__(self, calibration: Calibration, published: Collection[str] = ()) -> None:
        super().__init__(calibration.quantization)
        self.published = frozenset(published)
        self.forced: dict[str, Tensor] = {}
        self.steps: dict[str, Array] = {}
        self.codes: dict[str, Array] = {}

    def linear(self, name: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        layer = self.quantization.linears.get(name)
        if layer is None:
            return super().linear(name, x, weight, bias)
        if name in self.published:
            grid = traced(name, layer.input, x, self._record)
            return F.linear(grid, self._once(name, lambda: layer.weight(weight)), bias)
        quantizer, weights = layer.input, layer.weight
        assert isinstance(quantizer, Uniform)
        assert isinstance(weights, Uniform)
        middle = origin(quantizer)
        treated = layer.treated
        given, x = x, treated.input(x)
        codes = quantizer.codes(x)
        steps = x / quantizer.scale + (quantizer.zero_point - middle)
        codes = self._record(name, steps, codes - middle) + middle
        integers = self._once(name, lambda: weights.integers(treated.weight(weight)))
        product = F.linear(codes - quantizer.zero_point, integers)
        y = product * (quantizer.scale * weights.scale.flatten()) + bias
        return treated.add_float(y, given, weight)

    def matmul(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        operands = self.quantization.matmuls.get(name)
        known = name in self.published or f"{name}.left" in self.forced
        if operands is None or not known:
            return super().matmul(name, a, b)
        base = "/".join(name.rsplit(".", 1)) + "/" if name in self.published else f"{name}."
        sides = zip(("left", "right"), operands, (a, b), strict=True)
        left, right = (traced(base + side, q, x, self._record) for side, q, x in sides)
        return left @ right

    def _record(self, name: str, steps: Tensor, levels: Tensor) -> Tensor:
        """Note levels that were found; returns the graph's, as far as it has them."""
        self.steps[name], self.codes[name] = steps.numpy(), levels.numpy()
        graph = self.forced[name]
        levels = levels.clone()
        levels[leading(graph.shape)] = graph
        return levels


def origin(quantizer: Uniform) -> int:
    """What is subtracted from the simulation's codes to give levels: 0 for signed ones."""
    return 0 if quantizer.signed else 2 ** (quantizer.bits - 1)


@dataclass(frozen=True)
class _ForcedEncoder(Encoder):
    """Deletes and merges the tokens that the graph does, and notes which ones it would have."""

    forced: list[Tensor] = field(default_factory=list)
    found: list[Array] = field(default_factory=list)
    norms: list[Array] = field(default_factory=list)
    forced_pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    found_pairs: list[Pairs] = field(default_factory=list)

    def _choose(self, tokens: Tensor, count: int) -> Tensor:
        kept = super()._choose(tokens, count)
        self.found.append(kept.numpy())
        patches = tokens[:, self.spec.num_prefix_tokens :]
        self.norms.append(patches.abs().amax(dim=-1).numpy())
        return self.forced[0] if self.forced else kept

    def _pair(self, metric: Tensor, count: int) -> Pairs:
        found = super()._pair(metric, count)
        self.found_pairs.append(found)
        return Pairs(*self.forced_pairs[0], found.similarity) if self.forced_pairs else found


class TorchSimulator:
    """`regcache_export.compare.Simulator` and `Ends` over a calibration in PyTorch."""

    def __init__(self, calibration: Calibration, published: Collection[str] = ()) -> None:
        self.calibration = calibration
        self.numerics = ForcedNumerics(calibration, published)

    @torch.no_grad()
    def block(
        self, index: int, tokens: Array, forced: Forced, left: Left | None = None
    ) -> Simulated:
        """See `Simulator.block`."""
        numerics, source = self.numerics, self.calibration.encoder
        numerics.steps, numerics.codes = {}, {}
        numerics.forced = {
            name: torch.from_numpy(codes.astype(np.float32)) for name, codes in forced.codes.items()
        }
        encoder = _ForcedEncoder(source.spec, source.weights, source.merge)
        if forced.positions is not None:
            encoder.forced.append(torch.from_numpy(forced.positions))
        if forced.pairs is not None:
            order, destinations = forced.pairs.order, forced.pairs.destinations
            encoder.forced_pairs.append((torch.from_numpy(order), torch.from_numpy(destinations)))
        survivors = _survivors(left) if left is not None else Survivors()
        output = encoder.block(
            index, torch.from_numpy(tokens), numerics, self.calibration.regcache, survivors
        ).numpy()
        positions, norms = (found[0] if found else None for found in (encoder.found, encoder.norms))
        simulated = Simulated(dict(numerics.steps), dict(numerics.codes), positions, output, norms)
        if not encoder.found_pairs:
            return simulated
        found = encoder.found_pairs[0]
        pairs = NumpyPairs(found.order.numpy(), found.destinations.numpy())
        return replace(simulated, pairs=pairs, similarity=found.similarity.numpy())

    @torch.no_grad()
    def embed(self, pixels: Array, preprocess: Mapping[str, Any]) -> Array:
        """See `Ends.embed`."""
        images = torch.from_numpy(in_layout(pixels, None, preprocess))
        tokens: Array = self.calibration.encoder.embed(images).numpy()
        return tokens

    @torch.no_grad()
    def pool(self, tokens: Array, left: Left) -> Array:
        """See `Ends.pool`."""
        encoder = self.calibration.encoder
        features: Array = encoder.pool(torch.from_numpy(tokens), _survivors(left)).numpy()
        return features


def _survivors(left: Left) -> Survivors:
    kept = None if left.kept is None else torch.from_numpy(left.kept)
    sizes = None if left.sizes is None else torch.from_numpy(left.sizes.astype(np.float32))
    return Survivors(kept, sizes)


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
    for name in plan.matmuls:
        offsets |= {f"{name}.left": 0, f"{name}.right": 0}
    for name, (left, right) in plan.published.items():
        if name in plan.encoder.linears():
            offsets |= left.offsets(name)
        else:
            base = "/".join(name.rsplit(".", 1))
            offsets |= left.offsets(f"{base}/left") | right.offsets(f"{base}/right")
    return offsets


def certify_bundle(
    path: Path,
    plan: Plan,
    options: GraphOptions,
    calibration: Calibration,
    pixels: Tensor,
    manifest: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Compare a bundle with the simulation and put the certificate into it.

    Args:
        path: the bundle.
        plan, options: what it was written from.
        calibration: the simulation.
        pixels: uint8 `[n, H, W, 3]`; they travel in the bundle, so that anyone can verify it.
        manifest: further entries that the bundle will be sealed with.

    Returns:
        The certificate.

    Raises:
        VerificationError: the graph is not the simulated one; the message names the first
            divergent node, and the bundle stays without a certificate.
    """
    bundle = Bundle.open(path)
    shipped = onnx.load_model_from_string(bundle.read(MODEL))
    model = in_float32(shipped)
    subject = Subject(
        model=model,
        spec=plan.encoder,
        regcache=plan.regcache,
        options=options,
        offsets=graph_offsets(plan, model),
        preprocess=plan.preprocess,
        merge=plan.merge,
    )
    images = pixels.contiguous().numpy()
    simulator = TorchSimulator(calibration, plan.published)
    if model is shipped:
        evidence = agreed(subject, images, simulator)
    else:
        evidence = _of_float16(subject, shipped, plan, images, simulator)
    head = bundle.text_features if bundle.has_text_features else None
    optimized = compare_optimized(bundle, subject, images, evidence.features, head)
    if model is not shipped:
        optimized = optimized.with_half()
    written = evidence.features
    optimized = controlled(optimized, subject, images[: len(written)], written, head)
    if optimized.problem:
        raise VerificationError(optimized.problem)
    section = {
        "top1": optimized.top1,
        "mean_cosine": optimized.mean_cosine,
        "min_cosine": optimized.min_cosine,
        "control": optimized.control,
        "explained_by_rounding": len(optimized.explained),
        "half": optimized.half,
    }
    extra = {
        "optimized": section,
        "parameters": parameter_hashes(shipped),
        "header": header_hash(shipped),
        "files": file_hashes(bundle),
        "manifest": entry_hashes({**bundle.manifest, **(manifest or {})}),
    }
    document = make_document(subject, evidence, extra, f"torch {torch.__version__}")
    add_files(path, {CERTIFICATE: json_bytes(document), IMAGES: images_file(images)})
    return document


def agreed(subject: Subject, images: Array, simulator: TorchSimulator | None = None) -> Evidence:
    """`collect`, without a divergence.

    Raises:
        VerificationError: there is one; the message names the first divergent node.
    """
    evidence = collect(subject, images, simulator, simulator)
    divergent = first_divergence(list(evidence.comparison.counts.values()))
    if divergent is not None:
        raise VerificationError(
            f"the graph is not the simulated one; first divergent node: {describe(divergent)}"
        )
    return evidence


def _of_float16(
    subject: Subject, shipped: onnx.ModelProto, plan: Plan, images: Array, simulator: TorchSimulator
) -> Evidence:
    """Evidence for a graph with a float16 body, in three steps that need no float16 arithmetic.

    1. The graph of the plan with a float32 body computes the codes of the simulation.
    2. The shipped graph is that one with every float constant rounded, and nothing else.
    3. The shipped constants, computed in float32, give the codes of the numpy reference.

    Returns:
        Counts of the first step; code hashes and features of the third, which `verify` repeats.

    Raises:
        VerificationError: one of them fails.
    """
    twin = build_model(plan, options=replace(subject.options, body="float32"))
    simulated = agreed(replace(subject, model=twin), images, simulator)
    to_float16(twin)
    found, wanted = parameter_hashes(shipped), parameter_hashes(twin)
    other = [entry for entry, digest in wanted.items() if found.get(entry) != digest]
    other += [entry for entry in found if entry not in wanted]
    if other:
        node = first_user(twin if other[0] in wanted else shipped, other[0])
        raise VerificationError(
            f"the graph is not the simulated one; first divergent node: {node} ({other[0]} is not "
            f"that of the simulated graph, rounded to float16)"
        )
    stored = agreed(subject, images)
    return Evidence(simulated.comparison, stored.code_hashes, stored.features)
