"""Sinks planted into a trained encoder: the demo's mechanism on weights that others have learned.

In a ViT that was trained on photographs, massive tokens sit where an image is flat. The planting
does the same: one unit of a block's MLP learns, by a linear discriminant on photographs, to see the
flattest patches and marks them; one unit of the next block's MLP sees the mark, and its fc2 column
makes the token massive. How many tokens that are varies from image to image, as it comes.

Severity is one number, the ratio R: a sink is R times the median token, in l-inf norm, at both
places where it hurts: at the input of fc2 of block k (the spike), and in the residual stream behind
it. Both columns are dense: two coordinates are massive, and the others get entries of ordinary
size, so that no scaling of channels undoes the planting for nothing.

Nothing but the two units changes. An encoder with fresh sinks was never trained with them and is
ill in float, too; `adapt` lets it get used to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from regcache_deploy.encoders.canonical import Encoder, FloatNumerics
from regcache_deploy.errors import ConfigError, DataError

BATCH = 16

FLATTEST = 4
"""Patches an image that the discriminant takes for future sinks."""

CLASS_WEIGHT = 60.0
"""Of these few in the discriminant."""

RIDGE = 50.0
"""Added to the diagonal of the scatter matrix."""

MARK_HIDDEN = 8.0
"""Activation of the marking unit at a typical mark."""

MARK_RATIO = 4.0
"""Of a marked token to the median one, at most; the square root of R where that is less."""

MASSIVE = (4.0, -2.5)
"""The two massive coordinates of the planted direction."""

DENSE = 0.15
"""Standard deviation of its other coordinates."""

FITTING_STEPS = 4


@dataclass(frozen=True)
class Planting:
    """What to plant.

    Attributes:
        ratio: R, at least 2.
        seed: of the planted direction.
        block: k; the marks come from the block before.
        expected: tokens marked per image, on average over the photographs.

    Raises:
        ConfigError: a number out of range.
    """

    ratio: float
    seed: int = 0
    block: int = 3
    expected: float = 5.0

    def __post_init__(self) -> None:
        if not self.ratio >= 2:
            raise ConfigError(f"ratio {self.ratio}: a sink is at least 2 times the median token")
        if self.block < 1 or not self.expected > 0:
            raise ConfigError("sinks need a block before theirs, and more than no token an image")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Severity:
    """What was measured on the photographs, in l-inf norms of patch tokens.

    Attributes:
        token_ratio: median over the sinks, behind block k, to the median token.
        spike_ratio: the same at the input of fc2 of block k.
        later: the same tokens behind each of the blocks after k.
        sinks_mean, sinks_least, sinks_most: an image.
    """

    token_ratio: float
    spike_ratio: float
    later: tuple[float, ...]
    sinks_mean: float
    sinks_least: int
    sinks_most: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class _Inputs(FloatNumerics):
    """Float arithmetic that keeps the inputs of some linears."""

    def __init__(self, names: Sequence[str]) -> None:
        self.seen: dict[str, list[Tensor]] = {name: [] for name in names}

    def linear(self, name: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if name in self.seen:
            self.seen[name].append(x)
        return super().linear(name, x, weight, bias)


def _run(
    encoder: Encoder, block: int, states: Tensor, names: Sequence[str] = ()
) -> tuple[Tensor, dict[str, Tensor]]:
    """States `[n, N, D]` behind a block, and what the named linears gave patches to read there."""
    inputs, special = _Inputs(names), encoder.spec.num_prefix_tokens
    out = [encoder.run_blocks(part, block, block + 1, inputs) for part in states.split(BATCH)]
    return torch.cat(out), {n: torch.cat(parts)[:, special:] for n, parts in inputs.seen.items()}


@torch.no_grad()
def plant(encoder: Encoder, images: Tensor, planting: Planting) -> tuple[Encoder, Severity]:
    """Plant sinks.

    Args:
        encoder: trained, in floating point.
        images: normalized photographs `[n, 3, H, W]` that show what is flat; some dozen.
        planting: what to plant.

    Raises:
        ConfigError: the encoder has no block behind the planted one.
        DataError: the photographs give no marks, or the marks cannot be seen in the next block.
    """
    k, mark = planting.block, planting.block - 1
    if k + 1 >= encoder.spec.depth:
        raise ConfigError(f"block {k} is the last of {encoder.spec.depth}; plant an earlier one")
    tokens = torch.cat([encoder.embed(part) for part in images.split(BATCH)])
    direction = planted_direction(encoder.spec.width, planting.seed)

    states = torch.cat([encoder.run_blocks(part, 0, mark) for part in tokens.split(BATCH)])
    names = [f"blocks.{mark}.mlp.fc1"]
    _, seen = _run(encoder, mark, states, names)
    flat = flattest(images, encoder.spec.patch_size)
    share = planting.expected / encoder.spec.num_patches
    reading = _Reading.learn(seen[names[0]], flat)
    scores = reading.scores(seen[names[0]])
    reading.threshold = float(scores.flatten().kthvalue(round((1 - share) * scores.numel()))[0])
    above = (scores.topk(FLATTEST, dim=-1).values - reading.threshold).clamp_min(0)
    spread = float(above.median())
    marked = scores > reading.threshold + 0.5 * spread
    if spread <= 0 or not marked.any():
        raise DataError("the photographs give no marks: they need flat and busy parts")
    unit = _Unit(encoder, mark, reading, MARK_HIDDEN / spread, direction)
    encoder, states = unit.fit(states, marked, min(MARK_RATIO, planting.ratio**0.5))

    names = [f"blocks.{k}.mlp.fc1", f"blocks.{k}.mlp.fc2"]
    _, seen = _run(encoder, k, states, names)
    reading = _Reading.learn(seen[names[0]], marked)
    scores = reading.scores(seen[names[0]])
    sinks, others = scores[marked], scores[~marked]
    reading.threshold = float((sinks.quantile(0.1) + others.quantile(0.9995)) / 2)
    spread = float((sinks - reading.threshold).clamp_min(0).median())
    if spread <= 0:
        raise DataError(f"block {k} cannot see the marks of block {mark}")
    hidden = planting.ratio * float(seen[names[1]].abs().amax(-1).median())
    unit = _Unit(encoder, k, reading, hidden / spread, direction)
    encoder, _ = unit.fit(states, marked, planting.ratio)
    return encoder, severity(encoder, tokens, k)


def planted_direction(width: int, seed: int) -> Tensor:
    """`[D]`, largest entry 1: two massive coordinates, small entries everywhere else."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(width, generator=generator) * DENSE
    chosen = torch.randperm(width, generator=generator)[: len(MASSIVE)]
    direction[chosen] = torch.tensor(MASSIVE)
    return direction / direction.abs().max()


def flattest(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Mask `[n, P]` of the patches of least variance, `FLATTEST` an image."""
    height, width = patch_size
    patches = images.unfold(2, height, height).unfold(3, width, width)
    spread = patches.std(dim=(1, 4, 5)).flatten(1)
    return spread.argsort(dim=-1).argsort(dim=-1) < FLATTEST


@dataclass
class _Reading:
    """A linear discriminant: what a unit reads of a token."""

    weight: Tensor
    mean: Tensor
    threshold: float = 0.0

    @classmethod
    def learn(cls, tokens: Tensor, chosen: Tensor) -> _Reading:
        """Tell the tokens `chosen [n, P]` of `tokens [n, P, D]` from the others."""
        x, y = tokens.flatten(0, 1), chosen.flatten().float()
        mean = x.mean(dim=0)
        centred, weight = x - mean, 1 + CLASS_WEIGHT * y
        scatter = centred.T @ (centred * weight[:, None])
        scatter += RIDGE * torch.eye(x.shape[1])
        return cls(torch.linalg.solve(scatter, centred.T @ (weight * (y - y.mean()))), mean)

    def scores(self, tokens: Tensor) -> Tensor:
        return (tokens - self.mean) @ self.weight


@dataclass
class _Unit:
    """The least used hidden unit of a block's MLP, exchanged."""

    encoder: Encoder
    block: int
    reading: _Reading
    slope: float
    direction: Tensor

    def fit(self, states: Tensor, chosen: Tensor, ratio: float) -> tuple[Encoder, Tensor]:
        """Scale the fc2 column until the tokens `chosen [n, P]` have `ratio` in the median.

        Args:
            states: `[n, N, D]` at the input of the block.

        Returns:
            The encoder, and the states behind the block.
        """
        special, scale = self.encoder.spec.num_prefix_tokens, 1.0
        for _ in range(FITTING_STEPS):
            after, _ = _run(self.scaled(scale), self.block, states)
            norms = after[:, special:].abs().amax(-1)
            scale *= ratio * float(norms.median() / norms[chosen].median())
        encoder = self.scaled(scale)
        return encoder, _run(encoder, self.block, states)[0]

    def scaled(self, scale: float) -> Encoder:
        """The encoder with the unit writing `scale` times the direction, per activation."""
        name, weights = f"blocks.{self.block}.mlp", self.encoder.weights
        parts = ("fc1.weight", "fc1.bias", "fc2.weight")
        fc1, bias, fc2 = (weights[f"{name}.{part}"].clone() for part in parts)
        unit, reading = int((fc1.norm(dim=1) * fc2.norm(dim=0)).argmin()), self.reading
        fc1[unit] = reading.weight * self.slope
        bias[unit] = -self.slope * (float(reading.mean @ reading.weight) + reading.threshold)
        column = self.direction * scale
        if self.encoder.spec.layer_scale:
            column = column / weights[f"blocks.{self.block}.ls2"]
        fc2[:, unit] = column
        changed = zip(parts, (fc1, bias, fc2), strict=True)
        return self.encoder.replace({f"{name}.{part}": value for part, value in changed})


@torch.no_grad()
def severity(encoder: Encoder, tokens: Tensor, block: int) -> Severity:
    """Measure planted sinks on tokens `[n, N, D]` at the input of block 0.

    A sink is a token whose norm behind `block` is more than half of the largest one's median over
    the images.
    """
    name, special = f"blocks.{block}.mlp.fc2", encoder.spec.num_prefix_tokens
    norms: dict[int, list[Tensor]] = {i: [] for i in range(block + 1, encoder.spec.depth + 1)}

    def keep(index: int, x: Tensor) -> None:
        if index in norms:
            norms[index].append(x[:, special:].abs().amax(-1))

    inputs = _Inputs([name])
    for part in tokens.split(BATCH):
        keep(encoder.spec.depth, encoder.run_blocks(part, numerics=inputs, observe=keep))
    by_block = [torch.cat(parts) for _, parts in sorted(norms.items())]
    hidden = torch.cat(inputs.seen[name])[:, special:].abs().amax(-1)
    sinks = by_block[0] > 0.5 * by_block[0].amax(-1).median()
    ratios = [round(float(n[sinks].median() / n.median()), 3) for n in (*by_block, hidden)]
    counts = sinks.sum(-1)
    return Severity(
        token_ratio=ratios[0],
        spike_ratio=ratios[-1],
        later=tuple(ratios[1:-1]),
        sinks_mean=round(float(counts.float().mean()), 3),
        sinks_least=int(counts.min()),
        sinks_most=int(counts.max()),
    )
