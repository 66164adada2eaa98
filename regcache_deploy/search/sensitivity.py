"""Which linear layer breaks the encoder when it alone is quantized (paper, section 3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from ..encoders.canonical import Encoder
from ..encoders.watching import Watched
from ..errors import DataError
from ..evaluation import Objective, Score
from ..quantization.baselines import make_baseline
from ..quantization.one_linear import FLOAT_ONLY, numerics_of, one_at_a_time
from ..quantization.quantizers import Bits
from ..quantization.simulate import Calibration
from ..work.cache import PartCache, rows_key
from ..work.count import Work
from ..work.devices import halving
from ..work.workers import Place, Team
from .evaluator import Tokens
from .states import Embed
from .statistics import survivors

LAYERS = ("attn.qkv", "attn.out_proj", "mlp.fc1", "mlp.fc2")
FIRST_IMAGES = 16
FEWEST_IMAGES = 4
SHARE = 0.25
"""Of a race's budget: what the first look at all linears may take, down to `FEWEST_IMAGES`."""


@dataclass(frozen=True)
class Proxy:
    """What one float pass says about the same question.

    Attributes:
        fc2_input: per block, largest over median l-inf norm of the tokens at the input of fc2.
        block_input: the same at the input of the block.
    """

    fc2_input: tuple[float, ...]
    block_input: tuple[float, ...]

    @property
    def block(self) -> int:
        """Where max/median at fc2's input is largest; the first one of equals."""
        return int(np.asarray(self.fc2_input).argmax())

    @property
    def jump(self) -> float:
        """max/median at fc2's input of that block."""
        return self.fc2_input[self.block]


@dataclass(frozen=True)
class Sensitivity:
    """Score of every layer quantized alone.

    Attributes:
        full: score of the float model on the images of the curve; None where nothing was quantized.
        layers: layer name -> score with only this layer quantized, naive W8A8, on these images;
            empty where the layer was named or no choice depends on it.
        layer: the most sensitive one: by its loss on the most images that it was asked for; ties by
            fidelity, then the earlier one.
        proxy: the one-pass proxy, for comparison.
        images: size of the curve's image set.
    """

    full: Score | None
    layers: dict[str, Score]
    layer: str
    proxy: Proxy = field(default_factory=lambda: Proxy((), ()))
    images: int = 0

    @property
    def block(self) -> int:
        """Its block: k of the paper."""
        return int(self.layer.split(".")[1])

    def drop(self, name: str) -> float:
        """Loss of the objective when only `name` is quantized."""
        assert self.full is not None
        return self.full.value - self.layers[name].value


def first_images(depth: int, budget: int | None, fixed: bool) -> int:
    """Images on which all linears are compared first.

    Args:
        depth: blocks.
        budget: block-forwards of the race behind it; None is unbounded.
        fixed: there is nothing left to search but k.
    """
    if fixed:
        return FEWEST_IMAGES
    if budget is None:
        return FIRST_IMAGES
    price = len(LAYERS) * depth * (depth + 1) // 2
    return min(FIRST_IMAGES, max(FEWEST_IMAGES, int(SHARE * budget / price)))


@dataclass(frozen=True)
class LayerSetup:
    """What scores linears alone is built from; travels to workers.

    Attributes:
        calibration: the encoder in floating point, and quantizers of every linear.
        tokens: of the search images.
        batch_size: images per forward pass.
    """

    calibration: Calibration
    tokens: Tokens
    batch_size: int

    def to(self, device: torch.device) -> LayerSetup:
        """The same on a device."""
        return replace(self, calibration=self.calibration.to(device))

    def open(self, place: Place) -> Callable[[LayerJob], dict[str, Tensor]]:
        """A worker's own."""
        here = self.to(place.device)
        return lambda job: here.embed(*job)

    @torch.no_grad()
    def embed(
        self, names: list[str], rows: Tensor, told: Callable[[int], None] = lambda n: None
    ) -> dict[str, Tensor]:
        """Embeddings of the images `rows` for each linear of `names` alone, and ``""`` for none.

        Raises:
            DataError: NaN or infinite features.
        """
        features: dict[str, list[Tensor]] = {name: [] for name in [FLOAT_ONLY, *names]}
        encoder = self.calibration.encoder
        numerics = numerics_of(self.calibration.quantization, names)

        def run(images: Tensor) -> dict[str, Tensor]:
            found = {}
            for name, features_of in one_at_a_time(encoder, numerics, images):
                found[name] = features_of.cpu()
                if not features[name]:
                    told(name != FLOAT_ONLY)
            return found

        for piece in rows.split(self.batch_size):
            for found in halving(run, self.tokens(encoder, piece)):
                for name, part in found.items():
                    features[name].append(part)
        joined = {name: torch.cat(parts) for name, parts in features.items()}
        if not all(torch.isfinite(each).all() for each in joined.values()):
            raise DataError("the encoder gives NaN or infinite features on these images")
        return joined


LayerJob = tuple[list[str], Tensor]
"""Linears, and indices `[m]` of search images."""


@torch.no_grad()
def measure_sensitivity(
    encoder: Encoder,
    calibration_tokens: Tensor,
    tokens: Tokens,
    size: int,
    objective: Objective,
    *,
    cache: PartCache | None = None,
    batch_size: int = 64,
    first: int = FIRST_IMAGES,
    all_images: bool = False,
    error: float = 0.05,
    seed: int = 0,
    advance: Callable[[int], None] = lambda n: None,
    team: Team | None = None,
) -> Sensitivity:
    """Quantize one linear at a time, naive W8A8, and score search images.

    A layer of block i costs only blocks i..L-1. All layers are compared on a first subset, which
    gives the curve; those that may still be the worst by a paired bootstrap go on to twice as many
    images, until one is left.

    Args:
        calibration_tokens: `[c, N, D]` at the input of block 0; set the ranges.
        tokens: encoder, search image indices -> tokens at the input of block 0.
        size: search images.
        first: images of the first subset.
        all_images: no racing: every layer on every image, as published.
        error: chance that racing loses the worst layer.
        seed: order of the images, and the bootstrap.
        advance: told of every layer of the first subset; images that come in several batches
            tell with the first one.
        team: workers that share the layers.
    """
    cache = cache or PartCache(None, {}, Work())
    depth = encoder.spec.depth
    naive = make_baseline("naive", Bits(), "paper")

    @lru_cache
    def setup() -> LayerSetup:
        quantization = naive.calibrate(encoder, calibration_tokens).quantization
        return LayerSetup(Calibration(encoder, quantization), tokens, batch_size)

    def measure(
        names: list[str], rows: Tensor, told: Callable[[int], None] = lambda n: None
    ) -> dict[str, Score]:
        def compute() -> dict[str, Tensor]:
            found = _shared(setup(), names, rows, team, told)
            for name in [FLOAT_ONLY, *names]:
                block = 0 if name == FLOAT_ONLY else int(name.split(".")[1])
                cache.work.add(len(rows) * (depth - block))
            return _packed({n: objective.score(f, rows) for n, f in found.items()})

        parts = cache.part(
            "sensitivity", compute, names=names, rows=rows_key(rows), objective=objective.name
        )
        return {name: _unpacked(parts, name) for name in ["", *names]}

    cache.work.add(len(calibration_tokens) * depth)
    order = _order(size, seed)
    names = [f"blocks.{block}.{layer}" for block in range(depth) for layer in LAYERS]
    count = size if all_images else min(first, size)
    embed = partial(tokens, encoder)
    proxy = cached_proxy(encoder, embed, size, seed, batch_size, cache, all_images)
    curve = measure(names, order[:count], advance)
    scores, alive = curve, names
    while True:
        # In the layers' order, so that ties stay with the earlier one.
        losses = {name: -scores[name].cosine.numpy() for name in alive}
        if not objective.smooth:
            losses = {n: losses[n] - scores[n].per_image.numpy() for n in alive}
        alive = sorted(survivors(losses, size, error, seed), key=names.index)
        if len(alive) == 1 or count == size:
            worst = min(alive, key=lambda name: scores[name].key)
            break
        count = min(2 * count, size)
        scores = measure(alive, order[:count])
    return Sensitivity(
        curve.pop(""), {name: curve[name] for name in names}, worst, proxy, len(order[:count])
    )


def _shared(
    setup: LayerSetup,
    names: list[str],
    rows: Tensor,
    team: Team | None,
    told: Callable[[int], None],
) -> dict[str, Tensor]:
    """`LayerSetup.embed`; with a team, every worker takes as many linears of each block."""
    if team is None:
        return setup.embed(names, rows, told)
    rows = rows.clone()  # a slice is pickled with all that it was cut from
    jobs = [(part, rows) for i in range(team.size) if (part := names[i :: team.size])]
    found: dict[str, Tensor] = {}
    for place, features in team.answers(setup, jobs):
        found |= features
        told(len(jobs[place][0]))
    return {name: found[name] for name in [FLOAT_ONLY, *names]}


def measure_proxy(
    encoder: Encoder, tokens: Embed, rows: Tensor, batch_size: int, work: Work
) -> Proxy:
    """Largest over median l-inf norm, block by block, in one float pass over images `rows`."""
    depth = encoder.spec.depth
    at_input: list[list[Tensor]] = [[] for _ in range(depth)]
    at_fc2: list[list[Tensor]] = [[] for _ in range(depth)]

    def run(images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        inner: list[Tensor] = []
        outer: list[Tensor] = []

        def see(name: str, x: Tensor) -> None:
            if name.endswith("mlp.fc2"):
                inner.append(x.abs().amax(dim=-1).flatten().cpu())

        def observe(index: int, state: Tensor) -> None:
            outer.append(state.abs().amax(dim=-1).flatten().cpu())

        encoder.run_blocks(images, numerics=Watched(see), observe=observe)
        return outer, inner

    for piece in rows.split(batch_size):
        for outer, inner in halving(run, tokens(piece)):
            for index in range(depth):
                at_input[index].append(outer[index])
                at_fc2[index].append(inner[index])
        work.add(len(piece) * depth)

    def ratios(parts: list[list[Tensor]]) -> tuple[float, ...]:
        joined = [torch.cat(each) for each in parts]
        return tuple(float(x.max() / x.median().clamp_min(1e-12)) for x in joined)

    return Proxy(ratios(at_fc2), ratios(at_input))


def cached_proxy(
    encoder: Encoder,
    tokens: Embed,
    size: int,
    seed: int,
    batch_size: int,
    cache: PartCache,
    all_images: bool = False,
) -> Proxy:
    """`measure_proxy` on the first images in the order of the sensitivity."""
    rows = _order(size, seed)[: size if all_images else FIRST_IMAGES]

    def compute() -> dict[str, Tensor]:
        proxy = measure_proxy(encoder, tokens, rows, batch_size, cache.work)
        return {
            "fc2": torch.tensor(proxy.fc2_input, dtype=torch.float64),
            "input": torch.tensor(proxy.block_input, dtype=torch.float64),
        }

    found = cache.part("proxy", compute, rows=rows_key(rows))
    return Proxy(tuple(found["fc2"].tolist()), tuple(found["input"].tolist()))


def _order(size: int, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).permutation(size))


def _packed(scores: dict[str, Score]) -> dict[str, Tensor]:
    return {
        f"{name}/{part}": value
        for name, score in scores.items()
        for part, value in (("p", score.per_image), ("c", score.cosine), ("m", score.margin))
    }


def _unpacked(parts: dict[str, Tensor], name: str) -> Score:
    return Score.of(*(parts[f"{name}/{part}"] for part in ("p", "c", "m")))
