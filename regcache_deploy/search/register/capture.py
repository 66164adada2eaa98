"""The register: sink candidates, captured in their images, averaged (paper, section 4)."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ...data.images import Images
from ...encoders.canonical import Encoder
from ...encoders.watching import Watched
from ...errors import DataError
from ...work.devices import halving, wide
from ...work.workers import Place

TOP_CANDIDATES = 100
TOP_SINGLES = 20
"""Candidates of which the paper's v2 takes the best one."""
MAX_PER_IMAGE = 2

LoadImages = Callable[[Tensor], Tensor]
"""Image indices `[m]` -> normalized images `[m, 3, H, W]`."""


@dataclass(frozen=True, order=True)
class Candidate:
    """A patch token at the input of a block.

    Attributes:
        score: l-inf norm that it was ranked by.
        image: index of its image.
        position: index among all tokens of the image.
    """

    score: float
    image: int
    position: int


class CandidatePool:
    """The tokens of largest l-inf norm seen so far, at most `per_image` from one image."""

    def __init__(self, size: int = TOP_CANDIDATES, per_image: int = MAX_PER_IMAGE) -> None:
        self.size, self.per_image = size, per_image
        self._heap: list[Candidate] = []

    def add(self, tokens: Tensor, first_image: int, num_prefix_tokens: int) -> None:
        """Offer tokens `[B, N, D]` of images `first_image`..; leading tokens never qualify."""
        self.offer(self.strongest(tokens, num_prefix_tokens), first_image)

    def strongest(self, tokens: Tensor, num_prefix_tokens: int) -> list[list[tuple[float, int]]]:
        """Norm and position of each image's candidates."""
        scores = tokens[:, num_prefix_tokens:].abs().amax(dim=-1)
        best = scores.topk(min(self.per_image, scores.shape[1]), dim=1)
        places = (best.indices + num_prefix_tokens).tolist()
        pairs = zip(best.values.tolist(), places, strict=True)
        return [list(zip(values, indices, strict=True)) for values, indices in pairs]

    def offer(self, strongest: list[list[tuple[float, int]]], first_image: int) -> None:
        """Offer what `strongest` found in images `first_image`.."""
        for row, pairs in enumerate(strongest):
            for value, position in pairs:
                candidate = Candidate(value, first_image + row, position)
                if len(self._heap) < self.size:
                    heapq.heappush(self._heap, candidate)
                else:
                    heapq.heappushpop(self._heap, candidate)

    def sorted(self) -> list[Candidate]:
        """Largest norm first."""
        return sorted(self._heap, reverse=True)


@dataclass(frozen=True)
class Ranking:
    """Candidates by both rankings.

    Attributes:
        by_input: target block t -> candidates by l-inf at its input.
        by_fc2: candidates by l-inf at the input of fc2 of block k.
    """

    by_input: dict[int, list[Candidate]]
    by_fc2: list[Candidate]

    def chosen(self, ranking: str, block: int) -> list[Candidate]:
        """The candidates of a target block under `block_input` or `fc2_input`."""
        return self.by_fc2 if ranking == "fc2_input" else self.by_input[block]

    def behind(self, first: int) -> Ranking:
        """The same of images that lie behind `first` others."""

        def moved(found: list[Candidate]) -> list[Candidate]:
            return [replace(each, image=each.image + first) for each in found]

        return Ranking({t: moved(c) for t, c in self.by_input.items()}, moved(self.by_fc2))

    @classmethod
    def of(cls, parts: Sequence[Ranking], size: int) -> Ranking:
        """The ranking of all images, from those of their parts, each with as many candidates."""

        def best(found: Iterable[list[Candidate]]) -> list[Candidate]:
            return sorted(chain.from_iterable(found), reverse=True)[:size]

        blocks = {t: best(part.by_input[t] for part in parts) for t in parts[0].by_input}
        return cls(blocks, best(part.by_fc2 for part in parts))

    def recall(self, block: int) -> float:
        """Share of the fc2-input candidates that the input of `block` finds, too."""
        wanted, found = (
            {(c.image, c.position) for c in candidates}
            for candidates in (self.by_fc2, self.by_input[block])
        )
        return len(wanted & found) / len(wanted)


@torch.no_grad()
def rank_candidates(
    encoder: Encoder,
    batches: Iterable[Tensor],
    blocks: Iterable[int],
    sensitive_block: int,
    size: int = TOP_CANDIDATES,
) -> Ranking:
    """Rank patch tokens of reference images in one float pass over blocks 0..k.

    Args:
        encoder: in floating point.
        batches: images `[B, 3, H, W]`.
        blocks: target blocks t.
        sensitive_block: k.
        size: candidates to keep per block.

    Raises:
        DataError: no images, or non-finite activations.
    """
    pools = {block: CandidatePool(size) for block in blocks}
    fc2_pool, special = CandidatePool(size), encoder.spec.num_prefix_tokens
    last, first = max([*pools, sensitive_block]), 0

    def run(images: Tensor) -> tuple[int, list[tuple[CandidatePool, Any]]]:
        found: list[tuple[CandidatePool, Any]] = []

        def observe(index: int, tokens: Tensor) -> None:
            if not torch.isfinite(tokens).all():
                raise DataError(f"the input of block {index} holds NaN or infinite values")
            if index in pools:
                found.append((pools[index], pools[index].strongest(tokens, special)))

        def see(name: str, x: Tensor) -> None:
            if name == f"blocks.{sensitive_block}.mlp.fc2":
                found.append((fc2_pool, fc2_pool.strongest(x, special)))

        encoder.run_blocks(encoder.embed(images), 0, last + 1, Watched(see), observe=observe)
        return len(images), found

    for images in batches:
        for count, found in halving(run, images):
            for pool, strongest in found:
                pool.offer(strongest, first)
            first += count
    if not first:
        raise DataError("the register needs reference images, and there are none")
    return Ranking({block: pool.sorted() for block, pool in pools.items()}, fc2_pool.sorted())


@dataclass(frozen=True)
class RankSetup:
    """What a worker ranks with; its jobs are the first image of a part and that behind it.

    Attributes:
        encoder, blocks, sensitive_block, size: as of `rank_candidates`.
        images: all reference images.
        batch_size: images per forward pass.
    """

    encoder: Encoder
    images: Images
    blocks: tuple[int, ...]
    sensitive_block: int
    size: int
    batch_size: int

    def to(self, device: torch.device) -> RankSetup:
        """The same on a device."""
        return replace(self, encoder=self.encoder.to(device))

    def open(self, place: Place) -> Callable[[tuple[int, int]], Ranking]:
        """What ranks a part."""
        here = self.to(place.device)
        return lambda part: here.rank(*part)

    def rank(
        self, start: int, stop: int, advance: Callable[[int], None] = lambda n: None
    ) -> Ranking:
        """The candidates of the images `start` to `stop`; `advance` is told of their number."""

        def told() -> Iterator[Tensor]:
            for images in self.images.subset(slice(start, stop)).batches(self.batch_size):
                yield images
                advance(len(images))

        found = rank_candidates(self.encoder, told(), self.blocks, self.sensitive_block, self.size)
        return found.behind(start)


@dataclass(frozen=True)
class Captures:
    """What the candidates of one target block t are, in the float model.

    Attributes:
        block: t.
        states: `[C, D]`, hidden states at the input of block t.
        normed: block l >= t -> LN1 outputs `[C, D]` at the same positions of the same images.
    """

    block: int
    states: Tensor
    normed: dict[int, Tensor]

    def register(self, members: slice = slice(None)) -> dict[int, Tensor]:
        """In-context register: block -> mean LN1 output `[D]` of the chosen candidates."""
        return {
            block: value[members].to(wide(value)).mean(dim=0).float()
            for block, value in self.normed.items()
        }

    def solo_register(self, encoder: Encoder, members: slice = slice(None)) -> dict[int, Tensor]:
        """Register of the mean hidden state sent through blocks t..L-1 attending only to itself."""
        register: dict[int, Tensor] = {}

        def observe(index: int, tokens: Tensor) -> None:
            register[index] = encoder.norm(f"blocks.{index}.norm1", tokens[0, 0])

        mean = self.states[members].to(wide(self.states)).mean(dim=0).to(self.states.dtype)
        encoder.run_blocks(mean.view(1, 1, -1), self.block, observe=observe)
        return register


@torch.no_grad()
def capture(
    encoder: Encoder, load: LoadImages, wanted: dict[int, list[Candidate]], batch_size: int = 32
) -> dict[int, Captures]:
    """Run every source image once and read the candidates' positions at all later blocks.

    Args:
        encoder: in floating point.
        load: images that the candidates index into.
        wanted: target block -> its candidates.
        batch_size: images per forward pass.

    Returns:
        target block -> captures, in the candidates' order.
    """
    depth, width, device = encoder.spec.depth, encoder.spec.width, encoder.device
    places: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for block, candidates in wanted.items():
        for index, candidate in enumerate(candidates):
            places[candidate.image].append((block, index, candidate.position))
    out = {
        block: Captures(
            block,
            torch.zeros(len(candidates), width, device=device),
            {
                later: torch.zeros(len(candidates), width, device=device)
                for later in range(block, depth)
            },
        )
        for block, candidates in wanted.items()
    }

    def run(chunk: Tensor) -> None:
        def observe(index: int, tokens: Tensor) -> None:
            normed = encoder.norm(f"blocks.{index}.norm1", tokens)
            for row, image in enumerate(chunk.tolist()):
                for block, member, position in places[image]:
                    if index == block:
                        out[block].states[member] = tokens[row, position]
                    if index >= block:
                        out[block].normed[index][member] = normed[row, position]

        encoder.run_blocks(encoder.embed(load(chunk)), observe=observe)

    if places:
        for chunk in torch.tensor(sorted(places)).split(batch_size):
            halving(run, chunk)
    return out


def source_images(wanted: dict[int, list[Candidate]]) -> int:
    """How many images `capture` runs."""
    return len({c.image for candidates in wanted.values() for c in candidates})
