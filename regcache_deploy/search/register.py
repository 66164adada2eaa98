"""The register: top-100 sink candidates, captured in their images, averaged (paper, section 4)."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..encoders.canonical import Encoder
from ..errors import DataError

TOP_CANDIDATES = 100
MAX_PER_IMAGE = 2


@dataclass(frozen=True, order=True)
class Candidate:
    """A patch token at the input of a block.

    Attributes:
        score: l-inf norm.
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
        scores = tokens[:, num_prefix_tokens:].abs().amax(dim=-1)
        best = scores.topk(min(self.per_image, scores.shape[1]), dim=1)
        for row, (values, indices) in enumerate(
            zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ):
            for value, index in zip(values, indices, strict=True):
                candidate = Candidate(value, first_image + row, index + num_prefix_tokens)
                if len(self._heap) < self.size:
                    heapq.heappush(self._heap, candidate)
                else:
                    heapq.heappushpop(self._heap, candidate)

    def sorted(self) -> list[Candidate]:
        """Largest norm first."""
        return sorted(self._heap, reverse=True)


def find_candidates(
    encoder: Encoder,
    batches: Iterable[Tensor],
    blocks: list[int],
    size: int = TOP_CANDIDATES,
) -> dict[int, list[Candidate]]:
    """Rank patch tokens by l-inf at the input of each of `blocks`, in one float pass.

    Args:
        encoder: in floating point.
        batches: images `[B, 3, H, W]`.
        blocks: target blocks t.
        size: candidates to keep per block.
    """
    pools = {block: CandidatePool(size) for block in blocks}
    first = 0
    for images in batches:

        def observe(index: int, tokens: Tensor, first: int = first) -> None:
            if index in pools:
                pools[index].add(tokens, first, encoder.spec.num_prefix_tokens)

        tokens = encoder.embed(images)
        encoder.run_blocks(tokens, stop=max(blocks) + 1, observe=observe)
        first += len(images)
    if not first:
        raise DataError("the register needs reference images, and there are none")
    return {block: pool.sorted() for block, pool in pools.items()}


def capture_register(
    encoder: Encoder, images: Tensor, candidates: list[Candidate], block: int, batch_size: int = 32
) -> dict[int, Tensor]:
    """Average the LN1 outputs of the candidates in blocks `block`..L-1, in their own images.

    In-context capture: the float model runs on each source image as it is, and the candidate's
    position is read at every later block.

    Args:
        images: all reference images; `candidates` index into them.

    Returns:
        block -> mean LN1 output `[D]`.
    """
    positions: dict[int, list[int]] = defaultdict(list)
    for candidate in candidates:
        positions[candidate.image].append(candidate.position)
    sources = sorted(positions)
    sums: dict[int, Tensor] = {}
    for start in range(0, len(sources), batch_size):
        chunk = sources[start : start + batch_size]
        rows = torch.tensor([r for r, image in enumerate(chunk) for _ in positions[image]])
        columns = torch.tensor([p for image in chunk for p in positions[image]])

        def observe(
            index: int, tokens: Tensor, rows: Tensor = rows, columns: Tensor = columns
        ) -> None:
            if index >= block:
                normed = encoder.norm(f"blocks.{index}.norm1", tokens[rows, columns])
                total = normed.to(torch.float64).sum(dim=0)
                sums[index] = sums[index] + total if index in sums else total

        encoder.run_blocks(encoder.embed(images[chunk]), observe=observe)
    return {index: (total / len(candidates)).float() for index, total in sums.items()}
